"""A saved moment, put back, goes on as it went on before, to the last bit."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fakes import ScriptedEnv

from gem_policy.errors import SimulatorError
from gem_policy.simulators import restore, save

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mujoco") is None, reason="MuJoCo is not installed"
)
STEPS = 12
Env = gym.Env[Any, Any]


def maze(**kwargs: Any) -> Callable[[], Env]:
    def make() -> Env:
        robotics = pytest.importorskip("gymnasium_robotics", reason="has the mazes")
        gym.register_envs(robotics)
        return gym.make("PointMaze_UMaze-v3", **kwargs)

    return make


def door() -> Env:
    robotics = pytest.importorskip("gymnasium_robotics", reason="has the door")
    gym.register_envs(robotics)
    return gym.make("AdroitHandDoor-v1")


def ant_maze() -> Env:
    robotics = pytest.importorskip("gymnasium_robotics", reason="has the mazes")
    gym.register_envs(robotics)
    return gym.make("AntMaze_UMaze-v5")


def named(name: str) -> Callable[[], Env]:
    return lambda: gym.make(name)


QUICK = [
    # The next goal of this maze is drawn at random when one is reached.
    pytest.param(maze(continuing_task=True, reset_target=True), id="pointmaze"),
    pytest.param(named("Hopper-v5"), id="hopper"),
]
SLOW = [
    pytest.param(make, id=name, marks=pytest.mark.slow)
    for name, make in {
        "halfcheetah": named("HalfCheetah-v5"),
        "walker2d": named("Walker2d-v5"),
        "ant": named("Ant-v5"),  # reads positions of the last substep before it steps
        "antmaze": ant_maze,
        "door": door,
    }.items()
]


def play(env: Env, actions: np.ndarray[Any, Any]) -> list[Any]:
    """Everything that the steps return, as arrays."""
    out: list[Any] = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        parts = observation.values() if isinstance(observation, dict) else [observation]
        out.append([*map(np.array, parts), np.array([reward, terminated, truncated], float)])
    return out


def same(one: list[Any], other: list[Any]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def moves(env: Env, count: int, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    shape = (count, *(env.action_space.shape or ()))
    return rng.uniform(-0.9, 0.9, shape).astype(np.float32)


@pytest.mark.parametrize("make", [*QUICK, *SLOW])
def test_a_restored_moment_goes_on_as_before(make: Callable[[], Env]) -> None:
    env, other = make(), make()
    env.reset(seed=3)
    other.reset(seed=4)  # another start, another door, another goal
    play(env, moves(env, STEPS, 0))
    moment = save(env)
    actions = moves(env, STEPS, 1)
    first = play(env, actions)
    assert not same(first, play(env, actions))  # without restoring it goes on elsewhere
    for again in (env, other):
        restore(again, moment)
        assert same(first, play(again, actions))
        restore(again, moment)  # the moment itself was not played on
        assert same(first, play(again, actions))
    env.close()
    other.close()


def test_the_random_goals_to_come_are_part_of_the_moment() -> None:
    env = maze(continuing_task=True, reset_target=True)()
    env.reset(seed=0)
    moment = save(env)
    inner: Any = env.unwrapped

    def next_goal() -> Any:
        inner.update_goal(inner.goal.copy())  # as if it were reached
        return inner.goal.copy()

    first, second = next_goal(), next_goal()
    assert not np.array_equal(first, second)
    restore(env, moment)
    np.testing.assert_array_equal(next_goal(), first)
    np.testing.assert_array_equal(next_goal(), second)
    env.close()


def test_a_time_limit_goes_on_from_the_steps_of_the_moment() -> None:
    env = gym.make("Hopper-v5", max_episode_steps=5, terminate_when_unhealthy=False)
    env.reset(seed=0)
    actions = moves(env, 3, 0)
    play(env, actions)
    moment = save(env)
    assert [bool(step[-1][2]) for step in play(env, actions[:2])] == [False, True]
    restore(env, moment)
    assert [bool(step[-1][2]) for step in play(env, actions[:2])] == [False, True]
    env.close()


def test_other_environments_are_refused_in_words() -> None:
    with pytest.raises(SimulatorError, match="no MuJoCo environment"):
        save(ScriptedEnv())
    hopper, cheetah = gym.make("Hopper-v5"), gym.make("HalfCheetah-v5")
    limited = gym.make("Hopper-v5", max_episode_steps=-1)
    hopper.reset(seed=0)
    moment = save(hopper)
    for wrong in (cheetah, limited):
        wrong.reset(seed=0)
        with pytest.raises(SimulatorError, match="saved in another environment"):
            restore(wrong, moment)
    for env in (hopper, cheetah, limited):
        env.close()
