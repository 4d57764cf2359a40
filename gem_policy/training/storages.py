"""Reading episodes from Minari's file formats: only the arrays that training needs.

Minari's own iterator also decodes `infos` and builds a list an episode; reading the same files
directly takes a fraction of its time. Formats that this module does not know go through Minari.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from gem_policy.errors import DatasetError, DependencyError

Array = NDArray[Any]

METADATA_CACHE = 1 << 20  # bytes


@dataclass(frozen=True)
class Leaf:
    """One array of an observation.

    Attributes:
        path: Keys from the outermost Dict inwards; empty for a plain Box.
        space: Of one observation.
    """

    path: tuple[str, ...]
    space: gym.spaces.Box

    @property
    def size(self) -> int:
        """Numbers in one observation."""
        return int(np.prod(self.space.shape, dtype=np.int64))


@dataclass(frozen=True)
class RawEpisode:
    """One episode as the file holds it; nothing is checked yet.

    Attributes:
        number: Its number in the dataset.
        observations: One array a leaf, shape (T + 1, size).
        actions: Shape (T, size).
        rewards: Shape (T,).
        terminations: Shape (T,).
        truncations: Shape (T,).
    """

    number: int
    observations: Sequence[Array]
    actions: Array
    rewards: Array
    terminations: Array
    truncations: Array


def leaves(space: gym.Space[Any], path: tuple[str, ...] = ()) -> tuple[Leaf, ...]:
    """The arrays of an observation in the order of `gymnasium.spaces.flatten`.

    Raises:
        DatasetError: for anything but Box and (nested) Dict of Box, and for images.
    """
    where = f"observation entry `{'.'.join(path)}`" if path else "observation"
    if isinstance(space, gym.spaces.Dict):
        return tuple(
            leaf for key, inner in space.spaces.items() for leaf in leaves(inner, (*path, key))
        )
    if not isinstance(space, gym.spaces.Box):
        raise DatasetError(
            f"The {where} is a {type(space).__name__} space, expected Box or Dict of Box. Encode "
            "it as numbers (for example one-hot) in a wrapper and record the dataset again."
        )
    if space.dtype == np.uint8 and len(space.shape) >= 2:
        raise DatasetError(
            f"The {where} is an image of shape {space.shape}; the networks here read vectors. "
            "Train on features of the images, recorded as a Box of floats."
        )
    return (Leaf(path, space),)


def read_episodes(
    folder: Path, file_format: str, count: int, observation: Sequence[Leaf], action_size: int
) -> Iterator[RawEpisode]:
    """Yield episodes 0 to `count - 1` in order.

    Args:
        folder: The `data` folder of a dataset.
        file_format: `hdf5`, `arrow`, `parquet`, or another that the installed Minari knows.
        count: Number of episodes.
        observation: The arrays of an observation.
        action_size: Numbers in one action.

    Raises:
        DatasetError: if an episode or one of its arrays is missing or cannot be decoded.
        DependencyError: if the library behind the format is not installed.
    """
    if file_format == "hdf5":
        return _read_hdf5(folder, count, observation, action_size)
    if file_format in ("arrow", "parquet"):
        return _read_arrow(folder, file_format, count, observation, action_size)
    return _read_any(folder, count, observation, action_size)


def _read_hdf5(
    folder: Path, count: int, observation: Sequence[Leaf], action_size: int
) -> Iterator[RawEpisode]:
    try:
        import h5py
    except ImportError as error:
        raise _missing("h5py", "hdf5") from error
    names = ["/".join(("observations", *leaf.path)).encode() for leaf in observation]
    float32 = h5py.h5t.py_create(np.dtype(np.float32))

    def floats(episode: Any, name: bytes) -> Array:
        # Low level on purpose: half of the time goes into h5py's Python objects otherwise.
        dataset = h5py.h5d.open(episode, name)
        array = np.empty(dataset.shape, dtype=np.float32)
        if array.size:
            dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, array, float32)
        return array

    def flags(episode: Any, name: bytes) -> Array:
        dataset = h5py.h5d.open(episode, name)
        array = np.empty(dataset.shape, dtype=dataset.dtype)
        if array.size:
            dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
        return array

    try:
        file = h5py.File(folder / "main_data.hdf5", "r")
    except OSError as error:
        raise DatasetError(
            f"The file main_data.hdf5 of the dataset cannot be opened ({error}). It is incomplete "
            "or damaged: download or make the dataset again."
        ) from error
    with file:
        # Every array is read once; by default, HDF5 remembers 30 MB of addresses and far more
        # around them.
        cache = file.id.get_mdc_config()
        cache.set_initial_size, cache.initial_size = True, METADATA_CACHE
        cache.min_size, cache.max_size = METADATA_CACHE, METADATA_CACHE
        file.id.set_mdc_config(cache)
        for number in range(count):
            try:
                episode = h5py.h5g.open(file.id, f"episode_{number}".encode())
                yield RawEpisode(
                    number=number,
                    observations=[
                        _rows(floats(episode, name), leaf.size)
                        for name, leaf in zip(names, observation, strict=True)
                    ],
                    actions=_rows(floats(episode, b"actions"), action_size),
                    rewards=floats(episode, b"rewards"),
                    terminations=flags(episode, b"terminations"),
                    truncations=flags(episode, b"truncations"),
                )
            except (KeyError, OSError, ValueError, TypeError) as error:
                raise _unreadable(number, count, error) from error


def _read_arrow(
    folder: Path, file_format: str, count: int, observation: Sequence[Leaf], action_size: int
) -> Iterator[RawEpisode]:
    try:
        import pyarrow as pa
        import pyarrow.dataset
    except ImportError as error:
        raise _missing("pyarrow", "arrow") from error
    columns = ["observations", "actions", "rewards", "terminations", "truncations"]

    def numbers(column: Any, size: int) -> Array:
        while pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type):
            column = column.flatten()
        return _rows(column.to_numpy(zero_copy_only=False), size)

    for number in range(count):
        try:
            part = folder / str(number)
            table = pyarrow.dataset.dataset(
                str(part), format=file_format, ignore_prefixes=["_", ".", "metadata.json"]
            ).to_table(columns=columns)
            steps = int(json.loads((part / "metadata.json").read_text())["total_steps"])
            column = {name: table.column(name).combine_chunks() for name in columns}
            arrays = []
            for leaf in observation:
                array = column["observations"]
                for key in leaf.path:
                    array = array.field(key)
                arrays.append(numbers(array, leaf.size))
            # Arrow pads steps to the number of observations; `total_steps` says how many are real.
            yield RawEpisode(
                number=number,
                observations=arrays,
                actions=numbers(column["actions"], action_size)[:steps],
                rewards=column["rewards"].to_numpy(zero_copy_only=False)[:steps],
                terminations=column["terminations"].to_numpy(zero_copy_only=False)[:steps],
                truncations=column["truncations"].to_numpy(zero_copy_only=False)[:steps],
            )
        except (KeyError, OSError, ValueError, TypeError) as error:
            raise _unreadable(number, count, error) from error


def _read_any(
    folder: Path, count: int, observation: Sequence[Leaf], action_size: int
) -> Iterator[RawEpisode]:
    import minari

    dataset = minari.MinariDataset(folder)
    for number, episode in enumerate(dataset.iterate_episodes(range(count))):
        arrays = []
        for leaf in observation:
            array = episode.observations
            for key in leaf.path:
                array = array[key]
            arrays.append(_rows(np.asarray(array), leaf.size))
        yield RawEpisode(
            number=number,
            observations=arrays,
            actions=_rows(np.asarray(episode.actions), action_size),
            rewards=np.asarray(episode.rewards),
            terminations=np.asarray(episode.terminations),
            truncations=np.asarray(episode.truncations),
        )


def _rows(array: Array, size: int) -> Array:
    return array.reshape(-1, size) if array.size else np.empty((0, size), dtype=np.float32)


def _unreadable(number: int, count: int, error: Exception) -> DatasetError:
    return DatasetError(
        f"Episode {number} of {count} cannot be read ({type(error).__name__}: {error}). The "
        "dataset is incomplete or its arrays do not have the shapes of its spaces: download or "
        "make it again."
    )


def _missing(package: str, extra: str) -> DependencyError:
    return DependencyError(
        f"Reading this dataset needs {package}: pip install 'gem-policy[train]' (or "
        f"'minari[{extra}]')."
    )
