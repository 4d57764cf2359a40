"""MatchSpaces: what it adapts, and what it says about the rest."""

from __future__ import annotations

import collections

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FlattenObservation
from wrappers_fakes import ACTIONS, GOALS, Pond, random_policy, roll

from gem_policy import wrappers
from gem_policy.errors import SpaceError
from gem_policy.wrappers import vector


def box(*shape, dtype=np.float64, low=-np.inf, high=np.inf):
    return Box(low, high, shape, dtype)


def ordered(*keys):
    return Dict(collections.OrderedDict((key, GOALS[key]) for key in keys))


NESTED = Dict({"a": Dict({"x": box(2), "y": box(1, 2)}), "b": box(3, dtype=np.float32)})
ADAPTED = {
    "same": (GOALS, GOALS),
    "key order": (ordered("observation", "desired_goal", "achieved_goal"), GOALS),
    "dtype": (box(3, dtype=np.float32), box(3)),
    "integers": (box(3), Box(-5, 5, (3,), np.int16)),
    "flattened": (box(8), GOALS),
    "not flattened": (GOALS, box(8)),
    "nested": (NESTED, box(7, dtype=np.float32)),
    "from nested": (box(7, dtype=np.float32), NESTED),
    "shape": (box(2, 3), box(6)),
    "narrower": (box(3), box(3, low=-1, high=1)),
}


@pytest.mark.parametrize("pair", ADAPTED.values(), ids=ADAPTED)
def test_adapted(pair):
    expected, got = pair
    policy = random_policy(expected)
    env = wrappers.MatchSpaces(Pond(observation_space=got), policy)
    assert env.observation_space == policy.observation_space
    assert env.action_space == policy.action_space
    bare = Pond(observation_space=got)
    for result in (env.reset(seed=0), env.step(env.action_space.sample())):
        observation = result[0]
        if got.dtype != np.int16:  # the pond drifts through fractions
            assert env.observation_space.contains(observation)
        policy.predict(observation)
    raw = gym.spaces.flatten(got, bare.reset(seed=0)[0])
    ours = gym.spaces.flatten(expected, env.reset(seed=0)[0])
    if isinstance(expected, Dict) and isinstance(got, Dict):
        ours = gym.spaces.flatten(got, env.reset(seed=0)[0])
    np.testing.assert_allclose(ours, raw, rtol=1e-6)


DIFFERENT = {
    "size": (box(3), box(4), r"observation: expected 3 numbers .*, got 4"),
    "missing key": (GOALS, Dict({"observation": box(4)}), "observation: key 'achieved_goal' is m"),
    "extra key": (Dict({"o": box(4)}), Dict({"o": box(4), "p": box(1)}), "key 'p' is not expected"),
    "inner": (Dict({"o": box(4)}), Dict({"o": box(5)}), "observation/o: expected 4 numbers"),
    "bounds": (box(2, low=-1, high=1), box(2, low=-1, high=3), r"first number 0.*\[-1, 3\]"),
    "dtype": (Box(0, 9, (2,), np.int64), box(2, low=1, high=2), "expected dtype int64, got float"),
    "kind": (box(1), Discrete(3), "observation: .*Discrete"),
}


@pytest.mark.parametrize("home", [wrappers, vector])
@pytest.mark.parametrize("case", DIFFERENT.values(), ids=DIFFERENT)
def test_different(home, case):
    expected, got, message = case
    env = Pond(observation_space=got)
    env = env if home is wrappers else SyncVectorEnv([lambda: env])
    with pytest.raises(SpaceError, match=message):
        home.MatchSpaces(env, random_policy(expected))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Box(-1, 1, (2,)), r"other bounds in 1 of 2 .*dimension 1: expected \[-2, 2\], got \[-1"),
        (Box(-1, 1, (3,)), "action: expected 2 numbers, got 3"),
        (Discrete(2), "action: expected Box"),
        (Box(-1, 1, (2,), np.int8), "action: expected floats, got dtype int8"),
    ],
)
def test_other_actions(space, message):
    with pytest.raises(SpaceError, match=message):
        wrappers.MatchSpaces(Pond(action_space=space), random_policy())


def test_everything_that_differs_is_named_at_once():
    env = Pond(observation_space=Dict({"p": box(1)}), action_space=Box(-9, 9, (2,)))
    with pytest.raises(SpaceError) as caught:
        wrappers.MatchSpaces(env, random_policy(GOALS))
    assert str(caught.value).count("\n  ") == 5  # three missing, one extra, the action


def test_actions_arrive_in_the_environments_own_form():
    space = Box(
        ACTIONS.low.reshape(1, 2).astype(float),
        ACTIONS.high.reshape(1, 2).astype(float),
        dtype=np.float64,
    )
    inner = Pond(action_space=space)
    env = wrappers.MatchSpaces(inner, random_policy())
    env.reset(seed=0)
    env.step(np.array([0.5, -2], np.float32))
    assert space.contains(inner.received[0])
    np.testing.assert_array_equal(inner.received[0], [[0.5, -2]])


def test_the_guards_fit_around_it():
    policy = random_policy(GOALS)
    env = wrappers.MatchSpaces(FlattenObservation(Pond(observation_space=GOALS)), policy)
    out = roll(wrappers.SupportShield(wrappers.SupportMonitor(env, policy), policy), [np.zeros(2)])
    bare = roll(wrappers.SupportMonitor(Pond(observation_space=GOALS), policy), [np.zeros(2)])
    assert set(out[0][0]) == set(GOALS.spaces)
    assert {"shield", "log_beta"} <= set(out[1][-1]["gem"])
    assert np.isfinite(bare[1][-1]["gem"]["log_beta"])


def test_a_real_maze_that_was_flattened():
    pytest.importorskip("gymnasium_robotics")
    env = gym.make("PointMaze_UMaze-v3")
    policy = random_policy(env.observation_space, env.action_space)
    matched = wrappers.MatchSpaces(FlattenObservation(env), policy)
    observation, _ = matched.reset(seed=0)
    expected, _ = env.reset(seed=0)
    np.testing.assert_equal(observation, expected)
    env.close()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("pair", [ADAPTED[k] for k in ("flattened", "nested", "key order")])
def test_twin_does_what_singles_do(pair, mode):
    expected, got = pair
    policy = random_policy(expected)
    makers = [lambda n=n: Pond(n, observation_space=got) for n in (2, 3)]
    wrapped = [lambda m=m: wrappers.MatchSpaces(m(), policy) for m in makers]
    twin = vector.MatchSpaces(SyncVectorEnv(makers, autoreset_mode=mode), policy)
    inside = SyncVectorEnv(wrapped, autoreset_mode=mode)
    assert twin.observation_space == inside.observation_space
    assert twin.single_observation_space == policy.observation_space
    np.testing.assert_equal(twin.reset(seed=1)[0], inside.reset(seed=1)[0])
    for _ in range(7):
        actions = twin.action_space.sample()
        ours, theirs = twin.step(actions), inside.step(actions)
        np.testing.assert_equal(ours[:4], theirs[:4])
        if "final_obs" in theirs[-1]:
            for one, other in zip(ours[-1]["final_obs"], theirs[-1]["final_obs"], strict=True):
                np.testing.assert_equal(one, other)
