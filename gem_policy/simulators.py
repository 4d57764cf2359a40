"""The state of a MuJoCo environment, saved and put back, so that one moment is played many times.

Everything is copied: MuJoCo's whole data (positions, velocities, time, but also contacts, the
solver's warm start and what was computed of the last substep, on all of which the next step
depends in the last bit), the parts of the model that a reset moves, the goal, the random numbers
of later goals and the steps that a time limit has counted. Proven for Gymnasium's locomotion tasks,
PointMaze, AntMaze and Adroit's door by `tests/test_simulators.py`. One that keeps other things in
Python is not fully restored, and nothing can tell.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from gem_policy.errors import DependencyError, SimulatorError

# What resets move: the door's frame and the hammer's board, the pen's target, the maze's goal mark.
_MODEL_PARTS = ("body_pos", "body_quat", "site_pos")
# Mazes hold their robot as an environment of its own.
_ROBOTS = ("point_env", "ant_env")
_ATTRIBUTES = ("goal",)


@dataclass(frozen=True)
class Snapshot:
    """One moment of an environment.

    Attributes:
        data: A copy of MuJoCo's MjData.
        model: Copies of the arrays of MjModel that resets change, by name.
        attributes: Copies of the environment's own attributes, by name.
        random: State of each generator, of the environment and of its robot.
        elapsed: Steps counted by each time limit among the wrappers, outermost first.
    """

    data: Any
    model: Mapping[str, NDArray[np.float64]]
    attributes: Mapping[str, Any]
    random: tuple[Mapping[str, Any], ...]
    elapsed: tuple[int, ...]


def save(env: gym.Env[Any, Any]) -> Snapshot:
    """Copy the present moment of an environment that was reset.

    Raises:
        SimulatorError: It is no MuJoCo environment.
    """
    inner: Any = env.unwrapped
    body = _body(env)
    return Snapshot(
        copy.copy(body.data),
        {name: getattr(body.model, name).copy() for name in _MODEL_PARTS},
        {name: copy.copy(getattr(inner, name)) for name in _ATTRIBUTES if hasattr(inner, name)},
        tuple(copy.deepcopy(part.np_random.bit_generator.state) for part in _parts(env)),
        tuple(limit._elapsed_steps for limit in _limits(env)),
    )


def restore(env: gym.Env[Any, Any], snapshot: Snapshot) -> None:
    """Put an environment into a saved moment: the same one, or another of the same making.

    What follows is then, bit for bit, what followed the moment that was saved. The environment
    must have been reset once before.

    Raises:
        SimulatorError: It is no MuJoCo environment, or the moment is that of another one.
        DependencyError: MuJoCo is not installed.
    """
    try:
        import mujoco
    except ImportError as error:
        raise DependencyError("Restoring needs MuJoCo: pip install 'gem-policy[envs]'.") from error
    inner: Any = env.unwrapped
    body, parts, limits = _body(env), list(_parts(env)), list(_limits(env))
    fits = all(getattr(body.model, k).shape == v.shape for k, v in snapshot.model.items())
    fits = fits and body.data.qpos.shape == snapshot.data.qpos.shape
    if not fits or (len(parts), len(limits)) != (len(snapshot.random), len(snapshot.elapsed)):
        raise SimulatorError(
            f"The moment was saved in another environment than {env}. Save and restore in "
            "environments that were made with the same arguments and wrappers."
        )
    for name, value in snapshot.model.items():
        getattr(body.model, name)[:] = value
    mujoco.mj_copyData(body.data, body.model, snapshot.data)
    for name, value in snapshot.attributes.items():
        setattr(inner, name, copy.copy(value))
    for part, state in zip(parts, snapshot.random, strict=True):
        part.np_random.bit_generator.state = state
    for limit, steps in zip(limits, snapshot.elapsed, strict=True):
        limit._elapsed_steps = steps


def _parts(env: gym.Env[Any, Any]) -> Iterator[Any]:
    """The environment without its wrappers and, in a maze, its robot."""
    inner: Any = env.unwrapped
    yield inner
    yield from (getattr(inner, name) for name in _ROBOTS if hasattr(inner, name))


def _body(env: gym.Env[Any, Any]) -> Any:
    """What holds MuJoCo's model and data."""
    for part in _parts(env):
        if hasattr(part, "data") and hasattr(part, "model") and hasattr(part.data, "qpos"):
            return part
    raise SimulatorError(
        f"{env} is no MuJoCo environment: its state cannot be saved. Those of Gymnasium and "
        "Gymnasium-Robotics can."
    )


def _limits(env: gym.Env[Any, Any]) -> Iterator[Any]:
    """The time limits among the wrappers, outermost first."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.TimeLimit):
            yield env
        env = env.env
