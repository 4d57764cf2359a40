"""Whole episodes as flat arrays: what a recipe's simulation hands to the dataset writer."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gem_policy.errors import DatasetError
from gem_policy.training.atomic import write_atomically

Array = NDArray[Any]


@dataclass(frozen=True)
class Episodes:
    """Episodes laid end to end; an episode of `T` steps has `T` actions and `T + 1` observations.

    Attributes:
        lengths: Steps of each episode, int64, shape (episodes,), every one at least 1.
        observations: Named arrays of `sum(lengths) + episodes` rows. A plain Box observation has
            the single name `""`; the entries of a Dict space have their own names.
        actions: Shape (steps, *action), as the simulator received them.
        rewards: Shape (steps,).
        terminations: Shape (steps,), bool: the task itself ended.
        truncations: Shape (steps,), bool: the episode was cut for another reason.
        infos: Named arrays, one row an observation.

    Raises:
        DatasetError: if an array has a number of rows that does not follow from `lengths`.
    """

    lengths: Array
    observations: Mapping[str, Array]
    actions: Array
    rewards: Array
    terminations: Array
    truncations: Array
    infos: Mapping[str, Array]

    def __post_init__(self) -> None:
        """Check that the fields fit together."""
        if len(self.lengths) == 0 or int(self.lengths.min()) < 1:
            raise DatasetError(
                f"Every episode needs at least 1 step, got lengths {self.lengths[:10].tolist()}."
            )
        steps = int(self.lengths.sum())
        expected = {"": steps, "observations": steps + len(self.lengths)}
        arrays = {
            **{(name, ""): getattr(self, name) for name in _STEP_FIELDS},
            **{(f"observations[{k!r}]", "observations"): v for k, v in self.observations.items()},
            **{(f"infos[{k!r}]", "observations"): v for k, v in self.infos.items()},
        }
        wrong = [
            f"{name} has {len(array)} rows, expected {expected[kind]}"
            for (name, kind), array in arrays.items()
            if len(array) != expected[kind]
        ]
        if wrong:
            raise DatasetError("Episodes do not fit together: " + "; ".join(wrong) + ".")

    @property
    def steps(self) -> int:
        """Number of actions in all episodes."""
        return int(self.lengths.sum())

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.lengths)

    def returns(self) -> Array:
        """Undiscounted sum of rewards of each episode, float64, shape (episodes,)."""
        starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        return np.add.reduceat(np.asarray(self.rewards, dtype=np.float64), starts)

    def split(self) -> Iterator[dict[str, Any]]:
        """Yield each episode as keyword arguments of `minari.EpisodeBuffer`."""
        first = 0
        for number, length in enumerate(self.lengths.tolist()):
            steps = slice(first, first + length)
            rows = slice(first + number, first + number + length + 1)
            observations: Any = {name: array[rows] for name, array in self.observations.items()}
            if set(observations) == {""}:
                observations = observations[""]
            yield {
                "observations": observations,
                **{name: getattr(self, name)[steps] for name in _STEP_FIELDS},
                "infos": {name: array[rows] for name, array in self.infos.items()},
            }
            first += length

    def save(self, path: Path) -> None:
        """Write one uncompressed `.npz` that appears under `path` only when it is complete."""
        arrays = {"lengths": self.lengths, **{name: getattr(self, name) for name in _STEP_FIELDS}}
        arrays |= {f"observations/{name}": array for name, array in self.observations.items()}
        arrays |= {f"infos/{name}": array for name, array in self.infos.items()}
        with write_atomically(path) as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Episodes:
        """Read what `save` wrote.

        Raises:
            DatasetError: if the file is not such a file, or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return cls(
                lengths=arrays["lengths"],
                observations=_under("observations/", arrays),
                infos=_under("infos/", arrays),
                **{name: arrays[name] for name in _STEP_FIELDS},
            )
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise DatasetError(
                f"{path.name} is not a complete part of a dataset ({error}). Delete it and make "
                "the dataset again: all other parts are kept."
            ) from error


class EpisodeRecorder:
    """Collects one simulation step after another and cuts the stream into `Episodes`."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Any]] = {}
        self._infos: dict[str, list[Any]] = {}
        self._steps: dict[str, list[Any]] = {name: [] for name in _STEP_FIELDS}
        self._lengths: list[int] = []
        self._open = 0

    def begin(self, observation: Any, info: Mapping[str, Any]) -> None:
        """Start an episode at `observation`.

        Raises:
            DatasetError: if the episode before has not ended.
        """
        if self._open:
            raise DatasetError(f"The episode before, of {self._open} steps, has not been ended.")
        self._observe(observation, info)

    def step(
        self,
        action: Array,
        reward: float,
        terminated: bool,
        truncated: bool,
        observation: Any,
        info: Mapping[str, Any],
    ) -> None:
        """Add one step; `observation` is the one after the action. An end flag ends the episode."""
        for name, value in zip(_STEP_FIELDS, (action, reward, terminated, truncated), strict=True):
            self._steps[name].append(value)
        self._observe(observation, info)
        self._open += 1
        if terminated or truncated:
            self._lengths.append(self._open)
            self._open = 0

    def finish(self) -> Episodes:
        """Everything recorded; an episode still open is cut, its last step marked as truncated."""
        if self._open:
            self._steps["truncations"][-1] = True
            self._lengths.append(self._open)
            self._open = 0
        return Episodes(
            lengths=np.asarray(self._lengths, dtype=np.int64),
            observations={name: np.stack(rows) for name, rows in self._rows.items()},
            infos={name: np.stack(rows) for name, rows in self._infos.items()},
            actions=np.stack(self._steps["actions"]),
            rewards=np.asarray(self._steps["rewards"], dtype=np.float64),
            terminations=np.asarray(self._steps["terminations"], dtype=bool),
            truncations=np.asarray(self._steps["truncations"], dtype=bool),
        )

    def _observe(self, observation: Any, info: Mapping[str, Any]) -> None:
        named = observation if isinstance(observation, Mapping) else {"": observation}
        for name, value in named.items():
            self._rows.setdefault(name, []).append(np.array(value))
        for name, value in info.items():
            self._infos.setdefault(name, []).append(np.array(value))


def concatenate(parts: Sequence[Episodes]) -> Episodes:
    """All episodes of `parts`, in order, as one."""
    return Episodes(
        lengths=np.concatenate([part.lengths for part in parts]),
        observations=_join([part.observations for part in parts]),
        infos=_join([part.infos for part in parts]),
        **{name: np.concatenate([getattr(p, name) for p in parts]) for name in _STEP_FIELDS},
    )


def _join(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


_STEP_FIELDS = ("actions", "rewards", "terminations", "truncations")
