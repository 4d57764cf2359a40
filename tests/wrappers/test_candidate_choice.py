"""CandidateChoice: ranks are those of `explain`, and an agent can learn with them."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from wrappers_fakes import Pond, random_policy, roll

from gem_policy import SelectionConfig, wrappers
from gem_policy.errors import ConfigError, SpaceError
from gem_policy.wrappers import vector


@pytest.mark.parametrize("count", [1, 2, 9])
def test_ranks_are_those_of_the_explanation(count):
    policy = random_policy(selection=SelectionConfig(candidates=count))
    inner = Pond(length=100)
    env = wrappers.CandidateChoice(inner, policy)
    assert env.action_space == Discrete(count)
    observation, _ = env.reset(seed=0)
    for rank in range(count):
        row = policy.explain(observation).rows[rank]
        observation, *_, info = env.step(rank)
        np.testing.assert_allclose(inner.received[-1], row.action, rtol=1e-6)
        candidate = info["gem"]["candidate"]
        assert (candidate["rank"], candidate["index"]) == (rank, row.candidate)
        assert candidate["component"] == row.component
        assert candidate["score"] == pytest.approx(row.score, rel=1e-4, abs=1e-5)
        assert candidate["log_beta"] == pytest.approx(row.log_beta, rel=1e-4)
        assert candidate["percentile"] == pytest.approx(row.support_percentile, rel=1e-4)
        np.testing.assert_array_equal(candidate["action"], inner.received[-1])
        assert inner.action_space.contains(inner.received[-1])


def test_rank_zero_is_the_policy():
    policy, inner = random_policy(), Pond()
    env = wrappers.CandidateChoice(inner, policy)
    observation, _ = env.reset(seed=4)
    for _ in range(4):
        expected, _ = policy.predict(observation, deterministic=True)
        observation, *_ = env.step(0)
        np.testing.assert_array_equal(inner.received[-1], expected)


def test_number_of_candidates_stays_when_the_policy_changes():
    policy = random_policy(selection=SelectionConfig(candidates=5))
    env = wrappers.CandidateChoice(Pond(), policy)
    other = wrappers.CandidateChoice(Pond(), policy, candidates=12)
    policy.selection = policy.selection.replace(candidates=2, kappa=0.0)
    for wrapped, count in ((env, 5), (other, 12)):
        assert wrapped.action_space == Discrete(count)
        wrapped.reset(seed=0)
        assert wrapped.step(count - 1)[-1]["gem"]["candidate"]["rank"] == count - 1


def test_reset_is_blank_with_the_same_structure():
    env = wrappers.CandidateChoice(Pond(), random_policy())
    first, second = (out[-1]["gem"]["candidate"] for out in roll(env, [1]))
    assert {k: type(v) for k, v in first.items()} == {k: type(v) for k, v in second.items()}
    assert first["rank"] == first["component"] == -1
    assert np.isnan([first["score"], *first["action"]]).all()


@pytest.mark.parametrize("action", [2, np.int64(2), np.array(2), np.array([2]), [2]])
def test_accepted_forms_of_a_rank(action):
    env = wrappers.CandidateChoice(Pond(), random_policy())
    env.reset(seed=0)
    assert env.step(action)[-1]["gem"]["candidate"]["rank"] == 2


@pytest.mark.parametrize("action", [-1, 6, 1.0, True, np.zeros(2), "1", [1, 2]])
def test_what_is_no_rank_is_refused(action):
    env = wrappers.CandidateChoice(Pond(), random_policy())
    env.reset(seed=0)
    with pytest.raises(SpaceError, match="[Rr]ank"):
        env.step(action)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="candidates"):
        wrappers.CandidateChoice(Pond(), random_policy(), candidates=0)


def test_observation_that_is_not_finite_is_refused():
    class Broken(Pond):
        def _observation(self):
            return np.full(3, np.inf)

    env = wrappers.CandidateChoice(Broken(), random_policy())
    env.reset(seed=0)
    with pytest.raises(SpaceError, match="NaN or infinite"):
        env.step(0)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_twin_does_what_singles_do(mode):
    policy = random_policy()
    makers = [lambda n=n: Pond(n) for n in (3, 5, 4)]
    wrapped = [lambda m=m: wrappers.CandidateChoice(m(), policy) for m in makers]
    twin = vector.CandidateChoice(SyncVectorEnv(makers, autoreset_mode=mode), policy)
    inside = SyncVectorEnv(wrapped, autoreset_mode=mode)
    assert twin.action_space == inside.action_space == MultiDiscrete([6, 6, 6])
    twin.reset(seed=3), inside.reset(seed=3)
    inside.action_space.seed(0)
    for _ in range(12):
        actions = inside.action_space.sample()
        ours, theirs = twin.step(actions), inside.step(actions)
        for one, other in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
        if mode == AutoresetMode.NEXT_STEP:
            for key, expected in theirs[-1]["gem"]["candidate"].items():
                if not key.startswith("_"):
                    got = ours[-1]["gem"]["candidate"][key]
                    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)


def test_twin_sends_actions_where_they_are_ignored():
    class Diverging(Pond):
        def _observation(self):
            return np.full(3, np.nan) if self.steps == self.length else super()._observation()

    twin = vector.CandidateChoice(
        SyncVectorEnv([lambda: Diverging(1), lambda: Pond(9)]), random_policy()
    )
    twin.reset(seed=0)
    twin.step(np.array([0, 1]))
    observations, rewards, *_, infos = twin.step(np.array([0, 1]))
    assert infos["_gem"].tolist() == [False, True]
    assert np.isfinite(observations).all()
    assert rewards[0] == 0


def test_an_sb3_agent_learns_to_choose():
    sb3 = pytest.importorskip("stable_baselines3")

    class Bandit(gym.Env):
        """Rewards the candidate of rank 2 only; one step an episode."""

        observation_space, action_space = Pond().observation_space, Pond().action_space

        def __init__(self, policy):
            self.policy = policy

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(3), {}

        def step(self, action):
            wanted = self.policy.explain(np.zeros(3)).rows[2].action
            return np.zeros(3), float(np.allclose(action, wanted)), True, False, {}

    policy = random_policy(selection=SelectionConfig(candidates=4))
    env = wrappers.CandidateChoice(Bandit(policy), policy)
    model = sb3.DQN(
        "MlpPolicy",
        env,
        learning_rate=1e-2,
        learning_starts=20,
        train_freq=1,
        exploration_fraction=0.9,
        policy_kwargs={"net_arch": [8]},
        seed=0,
        device="cpu",
    ).learn(150)
    action, _ = model.predict(np.zeros(3), deterministic=True)
    assert action == 2
