"""MatchSpaces: what it adapts, and what it says about the rest."""

from __future__ import annotations

import collections

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import DtypeObservation, FlattenObservation
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
    "a number": (box(), box(1)),
    "to a number's list": (box(1), box()),
    "to numbers in a Dict": (Dict({"a": box(), "b": box(2)}), box(3)),
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
    "bounds, by little": (
        box(2, low=-4.8, high=4.8),
        box(2, dtype=np.float32, low=-4.8, high=4.801),
        r"2 of 2 .*first number 0.*\[-4.8, 4.801\]",
    ),
    "integer bounds": (
        Box(0, 100_000, (2,), np.int64),
        Box(0, 100_001, (2,), np.int64),
        r"\[0, 100000\], got \[0, 100001\]",
    ),
    "tiny bounds": (box(2, low=-1e-9, high=1e-9), box(2, low=-1e-9, high=9e-9), "9e-09"),
    "no bounds": (box(2, low=-1, high=1), box(2, dtype=np.float32), r"2 of 2 .*\[-inf, inf\]"),
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


class Scripted(Pond):
    """Observes one thing after another, whatever is done."""

    def __init__(self, observation_space, script):
        super().__init__(observation_space=observation_space)
        self.script = script

    def _observation(self):
        return gym.spaces.unflatten(self.observation_space, self.script[self.steps])


def observed(home, policy, make, steps):
    """What an environment shows through a MatchSpaces; of its vector twin, the only row."""
    if home is wrappers:
        env, action = wrappers.MatchSpaces(make(), policy), np.zeros(2)
        return [out[0] for out in (env.reset(seed=0), *(env.step(action) for _ in range(steps)))]
    env, action = vector.MatchSpaces(SyncVectorEnv([make]), policy), np.zeros((1, 2))
    outs = [env.reset(seed=0), *(env.step(action) for _ in range(steps))]
    return [next(gym.vector.utils.iterate(env.observation_space, out[0])) for out in outs]


LIMITS = np.array([4.8, 0.7, 0.1])  # in float32: above, below and above
SINGLE, DOUBLE = (Box(-LIMITS.astype(t), LIMITS.astype(t), dtype=t) for t in "fd")
NEARLY = Box(SINGLE.low * np.float32(1 - 1e-6), SINGLE.high * np.float32(1 - 1e-6))
PAIR = Dict(
    {
        "a": Box(-LIMITS[:2], LIMITS[:2], dtype=np.float64),
        "b": box(1, dtype=np.float32, low=-0.1, high=0.1),
    }
)
ROUNDED = {
    "to float64": (DOUBLE, SINGLE),
    "to float32": (SINGLE, DOUBLE),
    "to a Dict": (PAIR, DOUBLE),
    "from a Dict": (DOUBLE, PAIR),
    "from float16": (
        SINGLE,
        Box(SINGLE.low.astype(np.float16), SINGLE.high.astype(np.float16), dtype=np.float16),
    ),
}


@pytest.mark.parametrize("home", [wrappers, vector])
@pytest.mark.parametrize("pair", ROUNDED.values(), ids=ROUNDED)
def test_rounded_bounds_are_kept(home, pair):
    expected, got = pair
    flat = gym.spaces.flatten_space(got)
    script = [flat.high, flat.low, (flat.low / 2).astype(flat.dtype)]
    seen = observed(home, random_policy(expected), lambda: Scripted(got, script), 2)
    for observation, raw in zip(seen, script, strict=True):
        assert expected.contains(observation)
        rounding = 1e-3 if flat.dtype == np.float16 else 1e-6
        found = gym.spaces.flatten(expected, observation)
        np.testing.assert_allclose(found, raw, rtol=rounding)


@pytest.mark.filterwarnings("ignore:.*precision lowered by casting:UserWarning")  # of its own
@pytest.mark.parametrize("home", [wrappers, vector])
def test_the_dtype_wrapper_is_adapted(home):
    script = [LIMITS, -LIMITS]

    def make():
        return DtypeObservation(Scripted(DOUBLE, script), np.float32)

    seen = observed(home, random_policy(DOUBLE), make, 1)
    np.testing.assert_array_equal(seen[0], np.minimum(SINGLE.high, LIMITS))
    assert all(DOUBLE.contains(observation) for observation in seen)


@pytest.mark.parametrize("home", [wrappers, vector])
def test_what_lies_outside_is_not_hidden(home):
    script = [np.float32([4.9, -4.8, np.nan]), np.float32([-np.inf, 0.1, 0.11])]
    seen = observed(home, random_policy(DOUBLE), lambda: Scripted(SINGLE, script), 1)
    np.testing.assert_array_equal(seen[0][[0, 2]], script[0][[0, 2]])
    np.testing.assert_array_equal(seen[1], script[1])


def arrived(home, policy, space, action):
    """The action that reaches the environment."""
    inner = Pond(action_space=space)
    env = inner if home is wrappers else SyncVectorEnv([lambda: inner])
    env = home.MatchSpaces(env, policy)
    env.reset(seed=0)
    env.step(action if home is wrappers else action[None])
    return inner.received[0]


@pytest.mark.parametrize("home", [wrappers, vector])
@pytest.mark.parametrize("pair", [(SINGLE, DOUBLE), (DOUBLE, SINGLE), (DOUBLE, NEARLY)])
def test_actions_within_the_policys_bounds_are_within_the_environments(home, pair):
    ours, theirs = pair
    policy = random_policy(action_space=ours)
    for action in (ours.high, ours.low):
        got = arrived(home, policy, theirs, action)
        assert theirs.contains(got)
        np.testing.assert_allclose(got, action, rtol=1e-5)
    within = np.array([-0.123456789, 0.1, 1e-12])
    np.testing.assert_array_equal(
        arrived(home, policy, theirs, within), within.astype(theirs.dtype)
    )


@pytest.mark.parametrize("home", [wrappers, vector])
def test_actions_outside_of_the_policys_bounds_are_not_clipped(home):
    policy = random_policy(action_space=SINGLE)
    for action in (SINGLE.high * 2, np.nextafter(SINGLE.low, -np.inf, dtype=np.float32)):
        np.testing.assert_array_equal(arrived(home, policy, DOUBLE, action), action)
    got = arrived(home, policy, DOUBLE, np.float32([np.nan, -np.inf, 0.1]))
    np.testing.assert_array_equal(got, [np.nan, -np.inf, 0.1])
