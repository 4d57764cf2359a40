"""SupportMonitor: the numbers are right, and nothing but info changes."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from wrappers_fakes import GOALS, Pond, plain, random_policy, roll, without_gem

from gem_policy import SelectionConfig, wrappers
from gem_policy.errors import SpaceError
from gem_policy.wrappers import vector

NUMBERS = {"log_beta", "percentile", "q_mean", "q_std", "lcb", "component"}


def some_actions(space, count):
    space.seed(0)
    return [space.sample() for _ in range(count)]


@pytest.mark.parametrize("space", [None, GOALS], ids=["box", "goals"])
def test_rollout_is_the_bare_one(space):
    kwargs = {} if space is None else {"observation_space": space}
    policy = random_policy(**kwargs)
    actions = some_actions(policy.action_space, 13)
    bare = roll(Pond(**kwargs), actions)
    states = (torch.get_rng_state(), plain(np.random.get_state()))
    own = policy._generator.get_state()
    inner = Pond(**kwargs)
    watched = roll(wrappers.SupportMonitor(inner, policy), actions)
    assert plain(without_gem(watched)) == plain(bare)
    assert all(one is other for one, other in zip(inner.received, actions, strict=True))
    assert torch.equal(own, policy._generator.get_state())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == plain(np.random.get_state())


@pytest.mark.parametrize("name", ["PointMaze_UMaze-v3", "Hopper-v5"])
def test_rollout_in_a_simulator_is_the_bare_one(name):
    pytest.importorskip("gymnasium_robotics" if "Maze" in name else "mujoco")
    env = gym.make(name)
    policy = random_policy(env.observation_space, env.action_space)
    actions = some_actions(env.action_space, 40)
    bare = roll(env, actions)
    watched = roll(wrappers.SupportMonitor(env, policy), actions)
    assert plain(without_gem(watched)) == plain(bare)
    assert all(math.isfinite(out[-1]["gem"]["log_beta"]) for out in watched if len(out) == 5)
    env.close()


def test_numbers_are_those_of_the_policy():
    policy = random_policy(selection=SelectionConfig(candidates=9, kappa=2.0))
    env = wrappers.SupportMonitor(Pond(), policy)
    observation, _ = env.reset(seed=1)
    action = np.array([0.2, -1.5], dtype=np.float32)
    gem = env.step(action)[-1]["gem"]
    assert set(gem) == NUMBERS | {"choice"}
    assert set(gem["choice"]) == NUMBERS | {"action", "distance"}

    row = torch.from_numpy(observation.astype(np.float32))
    given = policy.scaler.apply(torch.from_numpy(action))[None]
    q = policy.critics(row, given)[:, 0].double().numpy()
    density = policy.behavior(row).log_prob(given)[0]
    shares = policy.actor(row).responsibilities(given)[0]
    below = (policy.calibration <= density).double().mean().item() * 100
    assert gem["log_beta"] == pytest.approx(density.item(), rel=1e-5)
    assert gem["percentile"] == pytest.approx(below, rel=1e-5)
    assert gem["q_mean"] == pytest.approx(q.mean(), rel=1e-5)
    assert gem["q_std"] == pytest.approx(q.std(), rel=1e-4)
    assert gem["lcb"] == pytest.approx(q.mean() - 2.0 * q.std(), rel=1e-4)
    assert gem["component"] == shares.argmax().item()
    assert {type(gem[k]) for k in NUMBERS - {"component"}} == {float}
    assert type(gem["component"]) is int

    best = policy.explain(observation).chosen
    choice = gem["choice"]
    expected, _ = policy.predict(observation, deterministic=True)
    np.testing.assert_array_equal(choice["action"], expected)
    assert choice["action"].dtype == expected.dtype
    assert choice["log_beta"] == pytest.approx(best.log_beta, rel=1e-5)
    assert choice["lcb"] == pytest.approx(best.lcb, rel=1e-4)
    gap = (action - choice["action"]) / np.array([1.0, 2.0])
    assert choice["distance"] == pytest.approx(np.linalg.norm(gap), rel=1e-5)


def test_the_policy_itself_differs_by_nothing():
    policy = random_policy()
    env = wrappers.SupportMonitor(Pond(), policy)
    observation, _ = env.reset(seed=0)
    for _ in range(5):
        action, _ = policy.predict(observation, deterministic=True)
        observation, *_, info = env.step(action)
        gem = info["gem"]
        assert gem["choice"]["distance"] == 0
        assert {k: gem[k] for k in NUMBERS} == {k: gem["choice"][k] for k in NUMBERS}


def test_settings_may_change_in_between():
    policy = random_policy(selection=SelectionConfig(candidates=1))
    env = wrappers.SupportMonitor(Pond(), policy)
    observation, _ = env.reset(seed=0)
    for count in (1, 40, 3):
        policy.selection = policy.selection.replace(candidates=count)
        expected, _ = policy.predict(observation, deterministic=True)
        observation, *_, info = env.step(expected)
        assert info["gem"]["choice"]["distance"] == 0


def blank(value):
    if isinstance(value, dict):
        return all(blank(v) for v in value.values())
    return value == -1 if isinstance(value, int) else bool(np.isnan(value).all())


def test_reset_has_the_same_structure_and_is_blank():
    env = wrappers.SupportMonitor(Pond(), random_policy())
    first, *_, second = roll(env, [env.action_space.sample()])

    def structure(value):
        if isinstance(value, dict):
            return {k: structure(v) for k, v in value.items()}
        return type(value), getattr(value, "shape", None), getattr(value, "dtype", None)

    assert structure(first[-1]["gem"]) == structure(second[-1]["gem"])
    assert blank(first[-1]["gem"])
    assert not blank(second[-1]["gem"]["choice"]["log_beta"])


def test_what_is_not_finite_is_blank_and_changes_nothing():
    class Broken(Pond):
        def _observation(self):
            return np.full(3, np.nan) if self.steps == 2 else super()._observation()

    env = wrappers.SupportMonitor(Broken(), random_policy())
    fine = np.zeros(2, dtype=np.float32)
    bad = np.array([np.nan, 0], dtype=np.float32)
    infos = [out[-1]["gem"] for out in roll(env, [fine, bad, fine, fine])]
    own = [{k: gem[k] for k in NUMBERS} for gem in infos]
    assert [blank(gem) for gem in own] == [True, False, True, True, True]  # step 4: state is NaN
    assert not blank(infos[2]["choice"]["log_beta"])


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e30])
def test_far_away_is_not_supported(value):
    env = wrappers.SupportMonitor(Pond(), random_policy())
    env.reset(seed=0)
    gem = env.step(np.array([value, 0.0]))[-1]["gem"]
    assert blank(gem["percentile"]) if np.isinf(value) else gem["percentile"] == 0


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_twin_says_what_singles_say(mode):
    policy = random_policy()
    lengths = (3, 5, 4)
    makers = [lambda n=n: Pond(n) for n in lengths]
    wrapped = [lambda m=m: wrappers.SupportMonitor(m(), policy) for m in makers]
    twin = vector.SupportMonitor(SyncVectorEnv(makers, autoreset_mode=mode), policy)
    bare = SyncVectorEnv(makers, autoreset_mode=mode)
    inside = SyncVectorEnv(wrapped, autoreset_mode=mode)
    outs = [env.reset(seed=3) for env in (twin, bare, inside)]
    assert not outs[0][1]["_gem"].any()
    ended = np.zeros(3, dtype=bool)
    for actions in some_actions(bare.action_space, 12):
        outs = [env.step(actions) for env in (twin, bare, inside)]
        assert plain(without_gem(outs[:1])) == plain(outs[1:2])
        gem, expected = outs[0][-1]["gem"], outs[2][-1]["gem"]
        done = outs[1][2] | outs[1][3]
        if mode == AutoresetMode.SAME_STEP:
            assert outs[0][-1]["_gem"].all()
            for i in np.flatnonzero(done):
                final = outs[2][-1]["final_info"]["gem"]
                assert gem["log_beta"][i] == pytest.approx(final["log_beta"][i], rel=1e-5)
            np.testing.assert_allclose(
                gem["log_beta"][~done], expected["log_beta"][~done], rtol=1e-5
            )
        else:
            np.testing.assert_array_equal(outs[0][-1]["_gem"], ~ended)
            for key in NUMBERS:
                np.testing.assert_allclose(gem[key], expected[key], rtol=1e-4)
            np.testing.assert_allclose(gem["choice"]["action"], expected["choice"]["action"], 1e-4)
            assert np.isnan(gem["log_beta"][ended]).all()
        ended = done


def test_twin_with_resets_by_hand():
    policy = random_policy()
    env = SyncVectorEnv([lambda: Pond(2), lambda: Pond(9)], autoreset_mode=AutoresetMode.DISABLED)
    twin = vector.SupportMonitor(env, policy)
    twin.reset(seed=0)
    actions = np.zeros((2, 2), dtype=np.float32)
    twin.step(actions)
    *_, truncated, _ = twin.step(actions)
    assert truncated.tolist() == [True, False]
    observations, infos = twin.reset(options={"reset_mask": np.array([True, False])})
    assert not infos["_gem"].any()
    *_, infos = twin.step(actions)
    assert infos["_gem"].all()
    rows = torch.from_numpy(observations.astype(np.float32))
    density = policy.assess(rows, torch.zeros(2, 1, 2)).log_beta[:, 0]
    np.testing.assert_allclose(infos["gem"]["log_beta"], density, rtol=1e-5)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_assess_batches_are_rows(batch):
    policy = random_policy()
    rows, actions = torch.randn(*batch, 3), torch.randn(*batch, 5, 2)
    whole = policy.assess(rows, actions)
    assert whole.log_beta.shape == (*batch, 5)
    for index in np.ndindex(*batch, 5):
        one = policy.assess(rows[index[:-1]], actions[index][None])
        for name, value in vars(one).items():
            assert torch.allclose(getattr(whole, name)[index], value[0], rtol=1e-4), name


def test_assess_says_what_shape_it_takes():
    policy = random_policy()
    with pytest.raises(SpaceError, match=r"\(4, candidates, 2\), got \(4, 1, 5\)"):
        policy.assess(torch.zeros(4, 3), torch.zeros(4, 1, 5))
    with pytest.raises(SpaceError, match="`assess` takes.* flattened"):
        policy.assess(torch.zeros(4, 5), torch.zeros(4, 1, 2))
