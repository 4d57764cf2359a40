"""Spaces as JSON, and observations of every accepted form as one float32 matrix.

Dict observations (nested ones too) are flattened in the order of Gymnasium's own
`gymnasium.spaces.flatten`, so that goal environments need no wrapper.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from gem_policy.errors import SpaceError

Array = NDArray[Any]

MAX_SIZE = 2**20  # numbers in a space; a hostile description is refused before it costs memory


def leaves(space: spaces.Space[Any], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """``(path of keys, Box)`` of every Box in a space, in Gymnasium's flattening order.

    Raises:
        SpaceError: The space holds something else than Box and Dict.
    """
    if isinstance(space, spaces.Dict):
        for key, child in space.spaces.items():
            yield from leaves(child, (*path, str(key)))
    elif isinstance(space, spaces.Box):
        yield path, space
    else:
        where = "/".join(path) or "the observation space"
        raise SpaceError(
            f"Observations must be a Box or a Dict of them, but {where} is {space}. "
            "Wrap the environment in gymnasium.wrappers.FlattenObservation."
        )


def observation_size(space: spaces.Space[Any]) -> int:
    """Length of the flattened observation."""
    return sum(math.prod(box.shape) for _, box in leaves(space))


def to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """A Box or Dict space as a JSON object; infinite bounds become the strings inf and -inf."""
    if isinstance(space, spaces.Dict):
        entries = {str(k): to_json(v) for k, v in space.spaces.items()}
        return {"type": "Dict", "spaces": entries, "order": list(entries)}
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "shape": list(space.shape),
            "dtype": str(space.dtype),
            "low": _bound_to_json(space.low),
            "high": _bound_to_json(space.high),
        }
    raise SpaceError(f"Only Box and Dict spaces can be stored, got {space}.")


def from_json(document: Mapping[str, Any]) -> spaces.Space[Any]:
    """The space that `to_json` described.

    Raises:
        SpaceError: The document describes no Box or Dict, or one of more than 2**20 numbers.
    """
    return _read(document, _Budget(MAX_SIZE))


class _Budget:
    """How many numbers a space may still hold."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, count: int) -> None:
        """Use some of it up."""
        self.left -= count
        if count < 0 or self.left < 0:
            raise ValueError(f"{count} numbers, where {self.left + count} more are allowed")


def _read(document: Mapping[str, Any], budget: _Budget) -> spaces.Space[Any]:
    try:
        if document["type"] == "Dict":
            order = [(key, _read(document["spaces"][key], budget)) for key in document["order"]]
            # An OrderedDict: of a plain dict, Gymnasium would sort the keys.
            return spaces.Dict(collections.OrderedDict(order))
        if document["type"] == "Box":
            shape, dtype = tuple(document["shape"]), np.dtype(document["dtype"])
            if dtype.kind not in "fiub":
                raise ValueError(f"a Box of dtype {dtype} and shape {shape}")
            budget.take(math.prod(shape))
            low = _bound_from_json(document["low"], shape, dtype)
            high = _bound_from_json(document["high"], shape, dtype)
            return spaces.Box(low, high, shape, dtype.type)
    except SpaceError:
        raise  # said once, however deep it lies
    except RecursionError as error:
        raise SpaceError("The description of a space is nested too deeply.") from error
    except (
        KeyError,
        TypeError,
        ValueError,
        ArithmeticError,
        AttributeError,
        AssertionError,
    ) as error:
        raise SpaceError(f"Not the description of a space: {error!r}.") from error
    raise SpaceError(f"Space type must be Box or Dict, got {document['type']!r}.")


def _bound_to_json(bound: Array) -> Any:
    """One number where all are equal, else the nested list; infinities as strings."""
    if bound.size and (bound == bound.flat[0]).all():
        bound = bound.flat[:1].reshape(())
    return np.vectorize(_number_to_json, otypes=[object])(bound).tolist()


def _number_to_json(value: Any) -> float | int | str:
    if not math.isfinite(value):
        return "inf" if value > 0 else "-inf"
    number: float | int = np.asarray(value).item()  # integers stay so: a float cannot hold all
    return number


def _bound_from_json(value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    numbers = np.asarray(value, dtype=object)
    kind = int if dtype.kind in "iu" else float
    exact = np.vectorize(kind, otypes=[object])(numbers)
    return np.broadcast_to(exact, shape).astype(dtype)


def action_box(space: spaces.Space[Any]) -> spaces.Box:
    """The action space, if it is one that a policy can act in.

    Raises:
        SpaceError: It is no bounded one-dimensional Box.
    """
    numbers = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not numbers:
        raise SpaceError(
            f"The action space must be a one-dimensional Box of real numbers, got {space}. "
            "Discrete actions are not what this method is for."
        )
    return space


class ObservationReader:
    """Turns what users pass to ``predict`` into float32 rows, or says what is wrong with it.

    Args:
        space: The observation space: a Box of any shape, or a Dict (nested too) of them.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = space
        self.leaves = list(leaves(space))
        self.size = observation_size(space)

    def read(self, observation: Any, *, finite: bool = True) -> tuple[NDArray[np.float32], bool]:
        """Rows of shape (batch, observation size), and whether there was a batch axis.

        Args:
            observation: An array, list or CPU tensor of the space's shape, or of it with one
                batch axis before; for Dict spaces a mapping of such.
            finite: Whether NaN and infinite values are refused.

        Raises:
            SpaceError: Wrong type, key, shape or dtype, or values that are NaN or infinite.
        """
        if isinstance(observation, tuple) and len(observation) == 2:
            if isinstance(observation[1], Mapping):
                raise SpaceError(
                    "Got the tuple (observation, info) instead of an observation: Gymnasium's "
                    "`env.reset()` returns both, a Stable-Baselines3 VecEnv only the first. "
                    "Write `obs, info = env.reset()` and pass `obs`."
                )
        if not isinstance(self.space, spaces.Dict):
            rows, batched = self._leaf(observation, (), self.leaves[0][1])
        else:
            if not isinstance(observation, Mapping):
                keys = sorted({path[0] for path, _ in self.leaves})
                raise SpaceError(
                    f"Expected a mapping with the keys {keys}, got "
                    f"{type(observation).__name__}. Pass the environment's own observation."
                )
            parts = [self._leaf(_get(observation, p), p, box) for p, box in self.leaves]
            unknown = _unknown(observation, self.space.spaces)
            if unknown:
                raise SpaceError(
                    f"The observation has entries {unknown} that the policy does not know; it "
                    f"knows {['/'.join(p) for p, _ in self.leaves]}. Drop them, if they are "
                    "meant for something else."
                )
            kinds = {(batched, rows.shape[0]) for rows, batched in parts}
            if len(kinds) != 1:
                raise SpaceError(
                    "The entries of the observation do not agree about the batch: "
                    + ", ".join(
                        f"{'/'.join(p)} has {'batch ' + str(r.shape[0]) if b else 'no batch axis'}"
                        for (p, _), (r, b) in zip(self.leaves, parts, strict=True)
                    )
                )
            rows = np.concatenate([r for r, _ in parts], axis=1)
            batched = parts[0][1]
        if finite and not np.isfinite(rows).all():
            bad = sorted(set(np.nonzero(~np.isfinite(rows))[1].tolist()))
            raise SpaceError(
                f"The observation has NaN or infinite values in flattened dimensions {bad[:10]}. "
                "A policy cannot act on them; look at what the environment or sensor returned."
            )
        return rows, batched

    def _leaf(
        self, value: Any, path: tuple[str, ...], box: spaces.Box
    ) -> tuple[NDArray[np.float32], bool]:
        """One Box's part of the observation, as rows."""
        name = f"Observation {'/'.join(path)!r}" if path else "The observation"
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SpaceError(f"{name} cannot be made an array: {error}.") from error
        if array.dtype.kind not in "fiub":
            raise SpaceError(
                f"{name} must hold real numbers, got dtype {array.dtype}. "
                "Expected what the environment returns, of dtype "
                f"{box.dtype} and shape {box.shape}."
            )
        if array.shape == box.shape:
            batched = False
        elif array.shape[1:] == box.shape and array.ndim == len(box.shape) + 1:
            batched = True
        else:
            raise SpaceError(
                f"{name} has shape {array.shape}, expected {box.shape} for one observation or "
                f"(batch, {', '.join(map(str, box.shape))}) for a batch."
            )
        count = array.shape[0] if batched else 1
        with np.errstate(all="ignore"):  # beyond float32 becomes inf, which read() refuses
            return array.astype(np.float32).reshape(count, math.prod(box.shape)), batched


def _get(observation: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """The entry under a path of keys."""
    value: Any = observation
    for depth, key in enumerate(path):
        if not isinstance(value, Mapping) or key not in value:
            got = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise SpaceError(
                f"The observation has no entry {'/'.join(path[: depth + 1])!r}; got {got}."
            )
        value = value[key]
    return value


def _unknown(observation: Mapping[str, Any], known: Mapping[str, spaces.Space[Any]]) -> list[str]:
    """Paths of the entries that are not among the known ones, all of which are there."""
    names = [str(key) for key in observation if key not in known]
    for key, child in known.items():
        if isinstance(child, spaces.Dict):
            names += [f"{key}/{name}" for name in _unknown(observation[key], child.spaces)]
    return names


def describe_difference(expected: spaces.Space[Any], got: spaces.Space[Any]) -> list[str]:
    """What differs between two spaces, in words; empty if a policy would see no difference."""
    if type(expected) is not type(got):
        return [f"expected {expected}, got {got}"]
    if isinstance(expected, spaces.Dict) and isinstance(got, spaces.Dict):
        lines = [f"key {k!r} is missing" for k in expected.spaces if k not in got.spaces]
        lines += [f"key {k!r} is not expected" for k in got.spaces if k not in expected.spaces]
        for key in expected.spaces:
            if key in got.spaces:
                inner = describe_difference(expected.spaces[key], got.spaces[key])
                lines += [f"{key}: {line}" for line in inner]
        return lines
    if isinstance(expected, spaces.Box) and isinstance(got, spaces.Box):
        if expected.shape != got.shape:
            return [f"expected shape {expected.shape}, got {got.shape}"]
        lines = []
        if expected.dtype != got.dtype:
            lines.append(f"expected dtype {expected.dtype}, got {got.dtype}")
        for side in ("low", "high"):
            if not np.allclose(getattr(expected, side), getattr(got, side), equal_nan=True):
                lines.append(f"expected other {side} bounds: {expected} against {got}")
        return lines
    return [] if expected == got else [f"expected {expected}, got {got}"]
