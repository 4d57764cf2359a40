"""MatchSpaces: an environment whose spaces are written differently than the policy's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from gem_policy.errors import SpaceError
from gem_policy.policy import GEMPolicy
from gem_policy.spaces import leaves
from gem_policy.wrappers.policy_wrapper import PolicySource, RecordedPolicy, read_numbers
from gem_policy.wrappers.records import Array

Space = spaces.Space[Any]


def differences(expected: Space, got: Space, where: str) -> list[str]:
    """What `convert` cannot adapt, in words; empty if it can adapt everything.

    Args:
        expected: The policy's observation space.
        got: The environment's.
        where: Name of the space, for the messages.
    """
    if isinstance(expected, spaces.Dict) and isinstance(got, spaces.Dict):
        lines = [f"{where}: key {k!r} is missing" for k in expected.spaces if k not in got.spaces]
        lines += [
            f"{where}: key {k!r} is not expected (gymnasium.wrappers.FilterObservation drops it)"
            for k in got.spaces
            if k not in expected.spaces
        ]
        for key, inner in expected.spaces.items():
            if key in got.spaces:
                lines += differences(inner, got.spaces[key], f"{where}/{key}")
        return lines
    try:
        ours, theirs = _flat_box(expected), _flat_box(got)
    except SpaceError as error:
        return [f"{where}: {error}"]
    if ours.shape != theirs.shape:
        return [
            f"{where}: expected {ours.shape[0]} numbers ({expected}), got {theirs.shape[0]} ({got})"
        ]
    if not np.can_cast(theirs.dtype, ours.dtype, "same_kind"):
        return [f"{where}: expected dtype {ours.dtype}, got {theirs.dtype}"]
    outside = np.flatnonzero(_below(theirs.low, ours.low) | _below(ours.high, theirs.high))
    if len(outside):
        i = int(outside[0])
        return [
            f"{where}: {len(outside)} of {ours.shape[0]} numbers may leave the policy's bounds, "
            f"first number {i}: expected [{ours.low[i]:g}, {ours.high[i]:g}], got "
            f"[{theirs.low[i]:g}, {theirs.high[i]:g}]"
        ]
    return []


def action_differences(expected: spaces.Box, got: Space) -> list[str]:
    """Why an action of `expected` cannot be handed to an environment with `got`, in words."""
    if not isinstance(got, spaces.Box):
        return [f"action: expected {expected}, got {got}"]
    ours, theirs = _flat_box(expected), _flat_box(got)
    if ours.shape != theirs.shape:
        return [f"action: expected {ours.shape[0]} numbers, got {theirs.shape[0]} ({got})"]
    if theirs.dtype.kind != "f":
        return [f"action: expected floats, got dtype {theirs.dtype}"]
    same = np.isclose(ours.low, theirs.low) & np.isclose(ours.high, theirs.high)
    if not same.all():
        i = int(np.flatnonzero(~same)[0])
        return [
            f"action: other bounds in {int((~same).sum())} of {len(same)} dimensions, first "
            f"dimension {i}: expected [{ours.low[i]:g}, {ours.high[i]:g}], got "
            f"[{theirs.low[i]:g}, {theirs.high[i]:g}] (gymnasium.wrappers.RescaleAction, if they "
            "mean the same in other units)"
        ]
    return []


class Conversion:
    """Makes elements of one observation space, or batches of them, those of another.

    What lies in the one then lies in the other, also where a bound was rounded.

    Args:
        expected: The policy's observation space.
        got: The environment's; `differences` found none.
    """

    def __init__(self, expected: Space, got: Space) -> None:
        self._expected, self._got = expected, got
        self._inner: dict[str, Conversion] | None = None
        if isinstance(expected, spaces.Dict) and isinstance(got, spaces.Dict):
            inner = expected.spaces.items()
            self._inner = {key: Conversion(space, got.spaces[key]) for key, space in inner}
        else:
            self._settle = _Settling(got, expected)

    def __call__(self, value: Any, batch: tuple[int, ...] = ()) -> Any:
        """The observation for the policy.

        Args:
            value: What the environment returned.
            batch: () for one observation, (envs,) for a batch.
        """
        if self._inner is not None:
            return {key: part(value[key], batch) for key, part in self._inner.items()}
        flat = self._settle(_flatten(self._got, value, batch))
        if isinstance(self._expected, spaces.Box):
            return flat.reshape((*batch, *self._expected.shape)).astype(self._expected.dtype)
        out: dict[str, Any] = {}
        start = 0
        for path, box in leaves(self._expected):
            stop = start + int(np.prod(box.shape))
            inner = out
            for key in path[:-1]:
                inner = inner.setdefault(key, {})
            part = flat[..., start:stop].reshape((*batch, *box.shape))
            inner[path[-1]] = part.astype(box.dtype)
            start = stop
        return out


class ActionConversion:
    """Makes actions for one box, or batches of them, actions for another.

    Numbers that lie in the one lie in the other, also where a bound was rounded. Others are not
    clipped: what becomes of them is the environment's to say.

    Args:
        expected: The policy's action space.
        got: The environment's; `action_differences` found none.
    """

    def __init__(self, expected: spaces.Box, got: spaces.Box) -> None:
        self._expected, self._got = expected, got
        # In the wider dtype, in which both boxes have exactly their own bounds.
        self._wide = np.result_type(expected.dtype, got.dtype)
        self._settle = _Settling(expected, got)

    def __call__(self, action: Any, batch: tuple[int, ...] = ()) -> Array:
        """The action for the environment.

        Args:
            action: Array, list or tensor of shape (*batch, action size).
            batch: () for one action, (envs,) for a batch.

        Raises:
            SpaceError: It is no numbers, or has another shape.
        """
        numbers = read_numbers(action, self._wide, (*batch, *self._expected.shape))
        return self._settle(numbers).astype(self._got.dtype).reshape((*batch, *self._got.shape))


def require_matching(
    policy: GEMPolicy, observation_space: Space, action_space: Space
) -> spaces.Box:
    """The environment's action space, if everything can be adapted.

    Raises:
        SpaceError: Names everything that cannot.
    """
    found = [
        *differences(policy.observation_space, observation_space, "observation"),
        *action_differences(policy.action_space, action_space),
    ]
    if found or not isinstance(action_space, spaces.Box):
        raise SpaceError(
            "MatchSpaces cannot make the environment fit the policy:\n  "
            + "\n  ".join(found)
            + "\nIs it the environment that the policy was trained for? gem_policy.make_env makes "
            "that one."
        )
    return action_space


def _flat_box(space: Space) -> spaces.Box:
    """The space as one Box with one axis, in Gymnasium's flattening order."""
    low, high = _bounds(space)
    return spaces.Box(low, high, dtype=low.dtype.type)


def _bounds(space: Space) -> tuple[Array, Array]:
    """Lowest and highest values of all numbers of a space, along one axis."""
    boxes = [box for _, box in leaves(space)]
    low = np.concatenate([box.low.reshape(-1) for box in boxes])
    return low, np.concatenate([box.high.reshape(-1) for box in boxes])


def _below(numbers: Array, bounds: Array) -> NDArray[np.bool_]:
    """Where numbers lie below bounds, by more than the rounding of single precision.

    Or of half, if one has no more. Also in double precision: those bounds may have been rounded.
    """
    if numbers.dtype.kind == bounds.dtype.kind == "f":
        kinds = (np.dtype(np.float32), numbers.dtype, bounds.dtype)
        coarse = min(kinds, key=lambda kind: kind.itemsize)
        with np.errstate(over="ignore"):
            numbers, bounds = numbers.astype(coarse), bounds.astype(coarse)
    below: NDArray[np.bool_] = numbers < bounds
    return below


class _Settling:
    """Clips numbers that lie in one space to another, where rounding alone takes them out of it.

    Args:
        source: A space of n numbers. Numbers outside of it are left as they are.
        target: One with the same bounds, but for rounding, or with wider ones.
    """

    def __init__(self, source: Space, target: Space) -> None:
        self._bounds, (self._least, self._most) = _bounds(source), _bounds(target)
        low, high = self._bounds
        self._needed = bool((low < self._least).any() or (high > self._most).any())

    def __call__(self, numbers: Array) -> Array:
        """The numbers, of shape (..., n)."""
        if not self._needed:
            return numbers
        low, high = self._bounds
        inside = (numbers >= low) & (numbers <= high)
        return np.where(inside, np.minimum(np.maximum(numbers, self._least), self._most), numbers)


def _flatten(space: Space, value: Any, batch: tuple[int, ...]) -> Array:
    """All numbers of an observation, along one axis."""
    parts = []
    for path, _ in leaves(space):
        entry = value
        for key in path:
            entry = entry[key]
        parts.append(np.asarray(entry).reshape(*batch, -1))
    return np.concatenate(parts, axis=-1)


class MatchSpaces(RecordedPolicy):
    """Adapts an environment's spaces to the policy's, or says exactly what differs.

    Adapted are the order of keys in a Dict, the dtype (where no floats would become integers), and
    flattening: a Dict where the policy was trained on its flattened form, or the other way round,
    and Boxes of another shape with as many numbers. The policy's spaces are published. Sizes,
    keys and bounds are never adapted: they differ because something else differs. Where another
    dtype rounds a bound, observations and actions that were within it are clipped to what it has
    become. Vector twin: `gem_policy.wrappers.vector.MatchSpaces`. Adds nothing to ``info``.

    Args:
        env: The environment.
        policy: Name, path, ``hf://`` address or a loaded policy.
        selection: Changes to the selection settings of a policy given by name or path.

    Raises:
        SpaceError: Something differs that cannot be adapted; the message names all of it.
        CheckpointError: There is no such policy.

    Example::

        env = MatchSpaces(FlattenObservation(gym.make("PointMaze_UMaze-v3")), policy)
        env.observation_space == policy.observation_space
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        policy: PolicySource,
        selection: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(env, policy, selection)
        box = require_matching(self.policy, env.observation_space, env.action_space)
        self.observation_space = self.policy.observation_space
        self.action_space = self.policy.action_space
        self._convert = Conversion(self.policy.observation_space, env.observation_space)
        self._convert_action = ActionConversion(self.policy.action_space, box)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; its observation as one of the policy's."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._convert(observation), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step with an action of the policy's action space.

        Raises:
            SpaceError: The action is no numbers, or has another shape than the action space.
        """
        given = self._convert_action(action)
        observation, reward, terminated, truncated, info = self.env.step(given)
        return self._convert(observation), reward, terminated, truncated, info
