"""Ranking quality where the answer is known: perfect, reversed and blind scores, scripted games."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import LinearEnv, tiny_checkpoint, tiny_policy

from gem_policy import ranking
from gem_policy.config import SelectionConfig
from gem_policy.errors import ConfigError
from gem_policy.policy import GEMPolicy, MixturePredictor
from gem_policy.ranking import (
    Job,
    Objective,
    candidate_returns,
    collect,
    compare,
    rank_correlations,
    reliability,
    roll_out,
    score_components,
    summarize,
)
from gem_policy.simulators import Snapshot

STATES, COUNT = 6, 9
PLAIN = Objective(discount=0.5)


def some_returns(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(STATES, COUNT))


# -- statistics ----------------------------------------------------------------------------------


def test_a_perfect_score_has_tau_1_and_no_regret() -> None:
    returns = some_returns()
    found = compare(np.exp(returns), returns)
    assert found["tau"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["tau_states"] == STATES
    assert found["regret"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["gain"] == found["room"]
    assert found["worse"]["mean"] == 0
    assert found["better"]["mean"] == np.mean(returns.max(-1) > returns[:, 0])


def test_a_reversed_score_has_tau_minus_1_and_all_regret() -> None:
    returns = some_returns()
    found = compare(-returns, returns)
    assert found["tau"]["mean"] == -1.0
    assert found["regret"]["mean"] == pytest.approx(np.ptp(returns, axis=-1).mean())
    assert found["better"]["mean"] == 0
    assert found["worse"]["mean"] == np.mean(returns.min(-1) < returns[:, 0])


def test_every_number_is_the_one_counted_by_hand() -> None:
    returns = np.array([[1.0, 3.0, 2.0], [5.0, 4.0, 6.0]])
    scores = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 0.5]])  # takes candidate 2, then candidate 1
    found = compare(scores, returns)
    assert found["regret"]["mean"] == pytest.approx((1 + 2) / 2)
    assert found["gain"]["mean"] == pytest.approx((1 - 1) / 2)
    assert found["room"]["mean"] == pytest.approx((2 + 1) / 2)
    assert found["random_regret"]["mean"] == pytest.approx((1 + 1) / 2)
    assert found["better"]["mean"] == found["worse"]["mean"] == 0.5
    # Pairs in order less pairs out of order: 2 - 1 of 3, and 1 - 2 of 3.
    assert rank_correlations(scores, returns).tolist() == pytest.approx([1 / 3, -1 / 3])


def test_states_in_which_nothing_matters_do_not_count_for_tau() -> None:
    returns = some_returns()
    returns[1] = 0.7 + 1e-12 * np.arange(COUNT)  # equal but for rounding
    returns[2] = 0.0
    scores = returns.copy()
    scores[3] = 1.0  # and where all scores are the same there is no order either
    found = compare(scores, returns)
    assert found["tau"]["mean"] == 1.0 and found["tau_states"] == STATES - 3
    undefined = np.isnan(rank_correlations(scores, returns))
    assert undefined.tolist() == [False, True, True, True, False, False]
    assert compare(scores[1:3], returns[1:3])["tau"] is None
    assert compare(scores[1:3], returns[1:3])["better"]["mean"] == 0


def test_a_blind_score_loses_what_a_blind_choice_loses() -> None:
    """Independent of the returns: tau near 0, regret near that of a random candidate."""
    rng = np.random.default_rng(0)
    returns, scores = rng.normal(size=(2, 400, COUNT))
    found = compare(scores, returns)
    assert found["tau"]["low"] < 0 < found["tau"]["high"]
    assert found["regret"]["low"] < found["random_regret"]["mean"] < found["regret"]["high"]
    assert found["gain"]["low"] < 0 < found["gain"]["high"]


def test_reliability_is_the_agreement_of_the_repeats() -> None:
    returns = some_returns()
    same = np.repeat(returns[..., None], 4, -1)
    assert reliability(same[..., :1]) is None
    agreed = reliability(same)
    assert agreed is not None and agreed["mean"] == 1.0
    opposed = reliability(same * np.array([1.0, -1.0, 1.0, -1.0]))
    assert opposed is not None and opposed["mean"] == -1.0
    assert reliability(np.zeros((STATES, COUNT, 2))) is None


# -- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", ["lower", "paired"])
def test_scores_of_every_budget_are_those_that_decide_would_give(bound: str) -> None:
    policy = tiny_policy(selection=SelectionConfig(kappa=2.0, support_weight=0.7, bound=bound))
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    actions, found = score_components(policy, rows, [1, 4, 16])
    assert actions.shape == (5, 16, 2)
    for count, parts in found.items():
        decision = policy.decide(rows, count=count)
        np.testing.assert_allclose(parts["score"], decision.scores, rtol=1e-4, atol=1e-5)
        q = decision.candidates.q.double().numpy()
        np.testing.assert_allclose(parts["mean_q"], q.mean(0), rtol=1e-4, atol=1e-5)
        bound_of = q.mean(0) - 2 * q.std(0)
        np.testing.assert_allclose(parts["lower_bound"], bound_of, rtol=1e-4, atol=1e-5)
        gain = q - q[..., :1]
        paired = gain.mean(0) - 2 * gain.std(0)
        np.testing.assert_allclose(parts["paired_bound"], paired, rtol=1e-4, atol=1e-5)
        chosen = actions[np.arange(5), parts["score"].argmax(-1)]
        np.testing.assert_allclose(chosen, decision.action, atol=1e-6)


def test_a_summary_takes_the_candidates_of_each_budget() -> None:
    returns = some_returns()[..., None]
    parts: dict[int, Mapping[str, Any]] = {
        n: {"score": returns[:, :n, 0], "mean_q": -returns[:, :n, 0]} for n in (1, 4, COUNT)
    }
    found = summarize(parts, returns)
    assert list(found) == ["1", "4", str(COUNT)]
    assert found["1"]["tau"] is None and found["1"]["room"]["mean"] == 0
    for count in (4, COUNT):
        best = returns[:, :count, 0].max(-1)
        assert found[str(count)]["gain"]["mean"] == pytest.approx(np.mean(best - returns[:, 0, 0]))
        assert found[str(count)]["tau_of"]["score"]["mean"] == 1
        assert found[str(count)]["tau_of"]["mean_q"]["mean"] == -1


# -- rollouts ------------------------------------------------------------------------------------


class Counter(gym.Env[Any, Any]):
    """Position moves by the action; the reward is the new position; over above 3."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.position = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.position = float(self.np_random.uniform(-1, 0))
        return self.seen(), {}

    def seen(self) -> Any:
        return np.array([self.position], np.float32)

    def step(self, action: Any) -> Any:
        self.position += float(action[0])
        return self.seen(), self.position, self.position > 3, False, {}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments of a `Counter` are its positions."""
    monkeypatch.setattr(ranking, "save", lambda env: moment(env.position))

    def restore(env: Any, snapshot: Snapshot) -> None:
        env.position = snapshot.data

    monkeypatch.setattr(ranking, "restore", restore)


def moment(position: float) -> Snapshot:
    return Snapshot(position, {}, {}, (), ())


def counting_policy() -> GEMPolicy:
    env = Counter()
    return GEMPolicy(tiny_checkpoint(env.observation_space, env.action_space), torch.device("cpu"))


def by_hand(policy: GEMPolicy, job: Job, objective: Objective, horizon: int) -> tuple[float, bool]:
    """One rollout, one step after the other, with decisions of one row."""
    env = Counter()
    env.reset(seed=0)
    env.position = job.snapshot.data
    value, action = 0.0, job.action
    for t in range(horizon):
        observation, reward, terminated, _, _ = env.step(action)
        value += objective.discount**t * (objective.scale * reward + objective.shift)
        if terminated or (
            objective.terminal_reward is not None and reward >= objective.terminal_reward
        ):
            return value, True
        action = policy.predict(observation, deterministic=True)[0]
        if job.noise is not None:
            action = np.clip(action + job.noise[t], -1, 1).astype(np.float32)
    return value, False


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("envs", [1, 3, 50])
@pytest.mark.parametrize(
    "objective", [PLAIN, Objective(0.9, 2.0, -0.25, terminal_reward=1.2)], ids=["plain", "ends"]
)
def test_rollouts_are_those_played_by_hand(envs: int, objective: Objective) -> None:
    policy, rng = counting_policy(), np.random.default_rng(0)
    jobs = [
        Job(
            moment(rng.uniform(-1, 3.4)),
            rng.uniform(-1, 1, 1).astype(np.float32),
            rng.normal(size=(7, 1)) if i % 2 else None,
        )
        for i in range(17)
    ]
    calls: list[int] = []
    found = roll_out(
        [Counter() for _ in range(envs)],
        jobs,
        policy,
        objective=objective,
        horizon=7,
        progress=lambda: calls.append(1),
    )
    expected = [by_hand(policy, job, objective, 7) for job in jobs]
    assert [o.ended for o in found] == [ended for _, ended in expected]
    np.testing.assert_allclose([o.value for o in found], [v for v, _ in expected], rtol=1e-5)
    assert len(calls) == 17 and {o.ended for o in found} == {True, False}
    assert policy.row_by_row  # left as it was


@pytest.mark.usefixtures("counted")
def test_candidates_of_a_moment_meet_the_same_noise_and_repeats_another() -> None:
    policy = counting_policy()
    starts = [ranking.Start(moment(p), None, 0, 0) for p in (0.0, 0.5)]
    actions = np.array([[[0.3], [0.3], [-0.2]], [[0.3], [0.1], [0.3]]])

    def returns(**kwargs: Any) -> Any:
        return candidate_returns(
            [Counter() for _ in range(4)],
            starts,
            actions,
            MixturePredictor(policy, "actor"),
            objective=PLAIN,
            horizon=5,
            **kwargs,
        )

    values, ended = returns(noise=0.3, repeats=2)
    assert values.shape == ended.shape == (2, 3, 2)
    np.testing.assert_array_equal(values[0, 0], values[0, 1])
    np.testing.assert_array_equal(values[1, 0], values[1, 2])
    assert (values[..., 0] != values[..., 1]).all() and values[0, 0, 0] != values[0, 2, 0]
    plain, _ = returns()
    assert plain.shape == (2, 3, 1) and (plain != values).all()
    with pytest.raises(ConfigError, match="3 repeats without noise"):
        returns(repeats=3)


@pytest.mark.usefixtures("counted")
def test_moments_are_spread_evenly_over_the_steps_of_the_episodes() -> None:
    """A moment of each of 300 episodes of 5 steps: every step is due 60 times, and 30 to 90 leaves
    a probability below 1e-4."""
    policy = counting_policy()
    seeds = range(100, 400)
    starts = collect(
        [Counter() for _ in range(7)],
        MixturePredictor(policy, "actor"),
        deterministic=False,
        objective=PLAIN,
        limit=5,
        seeds=seeds,
    )
    assert [s.seed for s in starts] == list(seeds)
    counts = np.bincount([s.step for s in starts], minlength=5)
    assert len(counts) == 5 and (counts > 30).all() and (counts < 90).all()
    for start in starts:  # what was seen belongs to what was saved
        assert start.observation[0] == np.float32(start.snapshot.data)


# -- objectives ----------------------------------------------------------------------------------


def test_objectives_come_from_the_training_settings() -> None:
    train = {"discount": 0.9, "reward_scale": 2.0, "reward_shift": -1.0, "terminal_reward": 1.0}
    policy = tiny_policy(provenance={"train": train})
    assert Objective.of(policy, "training") == Objective(0.9, 2.0, -1.0, 1.0)
    assert Objective.of(policy, "environment") == Objective(0.9)
    with pytest.raises(ConfigError, match="'training' or 'environment', got 'best'"):
        Objective.of(policy, "best")
    with pytest.raises(ConfigError, match="does not say how it was trained"):
        Objective.of(tiny_policy(), "training")


@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="MuJoCo is not installed")
def test_the_same_action_has_the_same_return_in_a_real_simulator() -> None:
    env = gym.make("HalfCheetah-v5", max_episode_steps=-1)
    policy = GEMPolicy(
        tiny_checkpoint(env.observation_space, env.action_space), torch.device("cpu")
    )
    env.reset(seed=0)
    starts = collect([env], policy, deterministic=True, objective=PLAIN, limit=6, seeds=[3, 4])
    still = np.zeros((2, 1, 6))
    wild = np.random.default_rng(0).choice([-1.0, 1.0], (2, 5, 6))
    values, ended = candidate_returns(
        [env],
        starts,
        np.concatenate([wild, still, wild], 1),
        policy,
        objective=PLAIN,
        horizon=4,
    )
    np.testing.assert_array_equal(values[:, :5], values[:, 6:])  # bit for bit the same again
    assert len(np.unique(values)) == 12 and not ended.any()
    env.close()


def test_environments_of_the_fakes_cannot_be_saved() -> None:
    with pytest.raises(Exception, match="no MuJoCo environment"):
        collect(
            [LinearEnv()],
            tiny_policy(LinearEnv().observation_space, LinearEnv().action_space),
            deterministic=True,
            objective=PLAIN,
            limit=3,
            seeds=[0],
        )
