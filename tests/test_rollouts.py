"""Returns from saved moments where they can be counted by hand: scripted games."""

from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import LinearEnv, tiny_checkpoint, tiny_policy

from gem_policy import rollouts
from gem_policy.errors import ConfigError
from gem_policy.mixture_predictor import MixturePredictor
from gem_policy.policy import GEMPolicy
from gem_policy.rollouts import Job, Objective, Start, candidate_returns, collect, roll_out
from gem_policy.simulators import Snapshot

PLAIN = Objective(discount=0.5)


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
    monkeypatch.setattr(rollouts, "save", lambda env: moment(env.position))

    def restore(env: Any, snapshot: Snapshot) -> None:
        env.position = snapshot.data

    monkeypatch.setattr(rollouts, "restore", restore)


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
    starts = [Start(moment(p), None, 0, 0) for p in (0.0, 0.5)]
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


def test_objectives_come_from_the_training_settings() -> None:
    train = {"discount": 0.9, "reward_scale": 2.0, "reward_shift": -1.0, "terminal_reward": 1.0}
    policy = tiny_policy(provenance={"train": train})
    assert Objective.of(policy, "training") == Objective(0.9, 2.0, -1.0, 1.0)
    assert Objective.of(policy, "environment") == Objective(0.9)
    told = {
        "train": train,
        "rewards": {"factor": 7.0, "shift": -1.0},
    }  # as return_normalization has
    assert Objective.of(tiny_policy(provenance=told), "training") == Objective(0.9, 7.0, -1.0, 1.0)
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
