"""Any Minari dataset as tensors: by id or by path, in every format that Minari writes.

    data = load("gem/pointmaze/large-v0")
    training, held_out = data.split(0.95, seed=0)
    batch = training.transitions.batch(torch.randint(len(training.transitions), (256,)))

Nothing here knows a dataset by its name. What cannot be trained on is refused in words; actions a
little outside of their space are clipped and counted.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from gem_policy.config import require_count
from gem_policy.errors import DatasetError
from gem_policy.training.memory import LOADING, check_room, step_bytes
from gem_policy.training.minari_root import datasets_in, datasets_root, describe_namespaces
from gem_policy.training.storages import RawEpisode, leaves, read_episodes
from gem_policy.training.transitions import TransitionBatch, Transitions

Array = NDArray[Any]

OUTSIDE_TOLERANCE = 0.1  # of a dimension's range; data further outside is in other units
CHUNK = 65536  # rows that are checked at a time, to keep temporary arrays small


@dataclass(frozen=True)
class EpisodeSummary:
    """What a filter may ask about an episode.

    Attributes:
        number: In the dataset as it was read, from 0.
        steps: Its length.
        total_reward: Undiscounted.
        terminated: Whether the task itself ended it.
        truncated: Whether it was cut for another reason.
    """

    number: int
    steps: int
    total_reward: float
    terminated: bool
    truncated: bool


@dataclass(frozen=True)
class Dataset:
    """Transitions in environment units, and where they come from.

    Attributes:
        id: Minari's id.
        transitions: The data.
        numbers: Shape (episodes,): each episode's number in the dataset as it was read.
        observation_space: Of the environment, before flattening.
        action_space: Of the environment, with finite bounds.
        env_spec: JSON of the environment that the data comes from, where known.
        eval_env_spec: JSON of the environment to score policies in, where it is another one.
        ref_min: Return that scores 0 in normalized units, where known.
        ref_max: Return that scores 1, where known.
        description: How the data was made, in the words of its author.
        recipe: Name, steps and seed, for datasets that this package made; empty otherwise.
        clipped_actions: How many steps had an action slightly outside of the space.
        metadata: The rest of what the dataset says about itself.
    """

    id: str
    transitions: Transitions
    numbers: Int[Tensor, " episodes"]
    observation_space: gym.Space[Any]
    action_space: gym.spaces.Box
    env_spec: str | None
    eval_env_spec: str | None
    ref_min: float | None
    ref_max: float | None
    description: str
    recipe: Mapping[str, object]
    clipped_actions: int
    metadata: Mapping[str, object]

    def episodes(self) -> Iterator[EpisodeSummary]:
        """Summaries in order."""
        data = self.transitions
        last = torch.cumsum(data.lengths, 0) - 1
        columns = zip(
            self.numbers.tolist(),
            data.lengths.tolist(),
            data.returns.tolist(),
            data.terminated[last].tolist(),
            data.truncated[last].tolist(),
            strict=True,
        )
        return (EpisodeSummary(*column) for column in columns)

    def filter(self, condition: Callable[[EpisodeSummary], bool]) -> Dataset:
        """The episodes that meet `condition`.

        Raises:
            DatasetError: if none does.
        """
        keep = [i for i, episode in enumerate(self.episodes()) if condition(episode)]
        return self._select(torch.tensor(keep, dtype=torch.int64))

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Two datasets without a common episode, for training and for held-out checks.

        Args:
            fraction: Share of the episodes in the first, in (0, 1); both get at least one.
            seed: Decides which; the same on every machine.

        Raises:
            DatasetError: if the fraction is outside (0, 1) or there is only one episode.
        """
        first, second = self.split_episodes(fraction, seed)
        return self._select(first), self._select(second)

    def split_episodes(
        self, fraction: float, seed: int
    ) -> tuple[Int[Tensor, " first"], Int[Tensor, " second"]]:
        """Which episodes `split` puts where, from 0, in no order; raises what it raises."""
        count = self.transitions.episodes
        if not 0.0 < fraction < 1.0:
            raise DatasetError(f"`fraction` must lie between 0 and 1, got {fraction}.")
        if count < 2:
            raise DatasetError(
                f"`{self.id}` has {count} episode here, and a split needs 2. Record more episodes "
                "or cut the one into several."
            )
        order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
        first = min(max(round(fraction * count), 1), count - 1)
        return order[:first], order[first:]

    def to(self, device: str | torch.device) -> Dataset:
        """The same dataset with its transitions on `device`."""
        return replace(self, transitions=self.transitions.to(device))

    def _select(self, episodes: Int[Tensor, " selected"]) -> Dataset:
        chosen = episodes.sort().values
        return replace(
            self, transitions=self.transitions.select(chosen), numbers=self.numbers[chosen]
        )


def load(
    dataset: str | Path,
    *,
    download: bool = False,
    device: str | torch.device = "cpu",
    episode_filter: Callable[[EpisodeSummary], bool] | None = None,
    max_steps: int | None = None,
) -> Dataset:
    """Read a Minari dataset.

    Observations of Dict spaces are flattened as `gymnasium.spaces.flatten` does. Termination and
    truncation stay apart. Episodes keep their order.

    Args:
        dataset: An id such as `D4RL/door/human-v2`, an id on a remote such as
            `hf://organization/name-v0`, or the path of a dataset's folder.
        download: Whether a dataset that is not on this machine may be fetched.
        device: Where the tensors go.
        episode_filter: Keeps only the episodes for which it returns True. How much memory they
            need is then not known beforehand, and not checked.
        max_steps: Stops before the first episode with which there would be more steps than this.

    Raises:
        ConfigError: if `max_steps` is no count.
        DatasetError: if the dataset is not there, is damaged, or cannot be trained on: discrete
            actions, image observations, unbounded actions, actions far outside of their space,
            NaN or infinite numbers, observations that do not fit the actions, a single episode;
            or if it does not fit into memory, before anything is read.
        DependencyError: if Minari or the library behind the file format is missing.
    """
    if max_steps is not None:
        require_count("max_steps", max_steps)
    folder = locate(dataset, download=download)
    source = open_source(folder)
    flat = leaves(source.observation_space)
    space = source.action_space
    _check_action_space(source)
    episodes = read_episodes(
        folder, source.file_format, source.total_episodes, flat, int(np.prod(space.shape))
    )
    sizes = sum(leaf.size for leaf in flat), int(np.prod(space.shape))
    limit = source.total_steps if max_steps is None else min(max_steps, source.total_steps)
    if episode_filter is None:
        check_room(source.id, limit, LOADING * step_bytes(*sizes), "Reading")
    columns = _Columns(source, *sizes, limit)
    numbers = []
    for episode in episodes:
        if columns.append(episode, episode_filter):
            numbers.append(episode.number)
        elif columns.full:
            break
    if len(numbers) < 2:
        kept = "" if episode_filter is None else " that `episode_filter` keeps"
        kept += "" if max_steps is None else f" within max_steps={max_steps}"
        raise DatasetError(
            f"`{source.id}` has {len(numbers)} episode(s){kept}; training needs 2 at least, one "
            "to learn from and one to check against. Record more, or cut it into several."
        )
    transitions = columns.finish()
    _check_finite(source, transitions)
    clipped = _clip_actions(source, transitions.actions)
    return Dataset(
        id=source.id,
        transitions=transitions.to(device),
        numbers=torch.tensor(numbers, dtype=torch.int64),
        observation_space=source.observation_space,
        action_space=space,
        env_spec=_text(source.metadata.get("env_spec")),
        eval_env_spec=_text(source.metadata.get("eval_env_spec")),
        ref_min=_number(source.metadata.get("ref_min_score")),
        ref_max=_number(source.metadata.get("ref_max_score")),
        description=_text(source.metadata.get("description")) or "",
        recipe=source.metadata.get("recipe") or {},
        clipped_actions=clipped,
        metadata=source.metadata,
    )


@dataclass(frozen=True)
class Source:
    """A dataset's description, read without its data.

    Attributes:
        id: Minari's id.
        folder: Where its data and metadata lie.
        file_format: `hdf5`, `arrow` or `parquet`.
        total_episodes: As the metadata says.
        total_steps: As the metadata says.
        observation_space: Of the environment.
        action_space: Of the environment; any space, `load` accepts only a bounded Box.
        metadata: All of it, without the spaces.
    """

    id: str
    folder: Path
    file_format: str
    total_episodes: int
    total_steps: int
    observation_space: gym.Space[Any]
    action_space: Any
    metadata: Mapping[str, Any]


def open_source(folder: Path) -> Source:
    """Read what a dataset says about itself.

    Args:
        folder: As `locate` returns it.

    Raises:
        DatasetError: if the metadata is damaged or of a version that Minari does not support.
    """
    import minari

    try:
        opened = minari.MinariDataset(folder)
        metadata = dict(opened.storage.metadata)
        return Source(
            id=opened.id,
            folder=folder,
            file_format=str(metadata["data_format"]),
            total_episodes=int(metadata["total_episodes"]),
            total_steps=int(metadata["total_steps"]),
            observation_space=metadata.pop("observation_space"),
            action_space=metadata.pop("action_space"),
            metadata={k: sorted(v) if isinstance(v, set) else v for k, v in metadata.items()},
        )
    except (ValueError, KeyError, AssertionError, OSError, TypeError) as error:
        raise DatasetError(
            f"The dataset in {folder} cannot be opened ({type(error).__name__}: {error}). "
            "Download or make it again, or upgrade Minari if a newer one wrote it."
        ) from error


def locate(dataset: str | Path, *, download: bool = False) -> Path:
    """The folder that holds a dataset's `metadata.json`.

    Args:
        dataset: As for `load`.
        download: As for `load`.

    Raises:
        DatasetError: if it is not there; the message says how to get it.
        DependencyError: if Minari is missing.
    """
    root = datasets_root()
    name = str(dataset)
    local_id = name.partition("://")[2].partition("/")[2] if "://" in name else name
    if "://" in name and not local_id:
        raise DatasetError(
            f"`{name}` names no dataset; expected `hf://organization/name-v0` or the like."
        )
    for folder in (root / local_id / "data", Path(name).expanduser()):
        for candidate in (folder, folder / "data"):
            if (candidate / "metadata.json").is_file():
                return candidate
    if download:
        _download(name, local_id, root)
        return root / local_id / "data"
    raise DatasetError(_not_found(name, local_id, root))


def local_ids() -> tuple[str, ...]:
    """Ids of all datasets on this machine."""
    root = datasets_root()
    found = []
    for folder, inner, _ in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if "data" in inner and (Path(folder) / "data" / "metadata.json").is_file():
            found.append(Path(folder).relative_to(root).as_posix())
            inner.clear()
    return tuple(found)


class _Columns:
    """Tensors that are filled episode by episode, at their final size from the start.

    Attributes:
        full: Whether an episode was turned away because it would have been too many steps.
    """

    def __init__(self, source: Source, observation_size: int, action_size: int, limit: int) -> None:
        steps, episodes = limit, min(source.total_episodes, limit)
        self._id, self._capacity = source.id, source.total_steps
        self._limit, self.full = limit, False
        self._tensors = {
            "observations": torch.empty(steps + episodes, observation_size),
            "actions": torch.empty(steps, action_size),
            "rewards": torch.empty(steps),
            "terminated": torch.empty(steps, dtype=torch.bool),
            "truncated": torch.empty(steps, dtype=torch.bool),
            "episode": torch.empty(steps, dtype=torch.int64),
        }
        self._arrays = {name: tensor.numpy() for name, tensor in self._tensors.items()}
        self._steps = self._episodes = 0

    def append(
        self, episode: RawEpisode, condition: Callable[[EpisodeSummary], bool] | None
    ) -> bool:
        """Copy an episode in unless `condition` rejects it or it is too long; says whether."""
        steps = self._check(episode)
        if condition is not None and not condition(_summary(episode)):
            return False
        if self._steps + steps > self._limit:
            self.full = True
            return False
        here = slice(self._steps, self._steps + steps)
        rows = slice(here.start + self._episodes, here.stop + self._episodes + 1)
        column = 0
        with np.errstate(over="ignore"):  # what does not fit float32 becomes inf, found later
            for array in episode.observations:
                self._arrays["observations"][rows, column : column + array.shape[1]] = array
                column += array.shape[1]
            self._arrays["actions"][here] = episode.actions
            self._arrays["rewards"][here] = episode.rewards
        self._arrays["terminated"][here] = episode.terminations
        self._arrays["truncated"][here] = episode.truncations
        self._arrays["episode"][here] = self._episodes
        self._steps, self._episodes = here.stop, self._episodes + 1
        return True

    def finish(self) -> Transitions:
        """The tensors, cut to what was filled."""
        ends = {"observations": self._steps + self._episodes}
        return Transitions(
            **{
                name: tensor
                if len(tensor) == (end := ends.get(name, self._steps))
                else tensor[:end].clone()
                for name, tensor in self._tensors.items()
            }
        )

    def _check(self, episode: RawEpisode) -> int:
        steps = len(episode.rewards)
        rows = {len(array) for array in episode.observations}
        sizes = {len(episode.actions), len(episode.terminations), len(episode.truncations), steps}
        if steps == 0 or sizes != {steps} or rows != {steps + 1}:
            raise DatasetError(
                f"Episode {episode.number} of `{self._id}` is misaligned: {sorted(rows)} "
                f"observations, {len(episode.actions)} actions, {steps} rewards, "
                f"{len(episode.terminations)} terminations, {len(episode.truncations)} "
                "truncations; expected T + 1 observations to T >= 1 of everything else. Record "
                "it again with Minari's DataCollector, which keeps the last observation."
            )
        if self._steps + steps > self._capacity:
            raise DatasetError(
                f"`{self._id}` holds more steps than the {self._capacity} that its metadata "
                "states. The dataset was changed by hand or half written: make it again."
            )
        return steps


def _summary(episode: RawEpisode) -> EpisodeSummary:
    return EpisodeSummary(
        number=episode.number,
        steps=len(episode.rewards),
        total_reward=float(np.sum(episode.rewards, dtype=np.float64)),
        terminated=bool(episode.terminations[-1]),
        truncated=bool(episode.truncations[-1]),
    )


def _check_action_space(source: Source) -> None:
    space = source.action_space
    if not isinstance(space, gym.spaces.Box):
        raise DatasetError(
            f"`{source.id}` has a {type(space).__name__} action space; GEM proposes continuous "
            "actions and needs a Box. Choose a dataset with continuous actions."
        )
    if not np.issubdtype(space.dtype, np.floating) or not space.is_bounded("both"):
        raise DatasetError(
            f"`{source.id}` has the action space {space}; expected floats with finite bounds. "
            "Rescale actions to finite bounds (gymnasium.wrappers.RescaleAction) and record again."
        )


def _check_finite(source: Source, data: Transitions) -> None:
    for name in ("rewards", "observations", "actions"):
        tensor = getattr(data, name)
        bad = sum(int((~chunk.isfinite()).sum()) for chunk in tensor.split(CHUNK))
        if bad:
            rows = (~tensor.reshape(len(tensor), -1).isfinite()).any(1).nonzero()[:, 0]
            raise DatasetError(
                f"`{source.id}` has {bad} NaN or infinite {name} (first in row {int(rows[0])}). "
                f"Drop those episodes with `episode_filter`, or repair them: `gem-policy doctor "
                f"{source.id}` lists them."
            )


def _clip_actions(source: Source, actions: Tensor) -> int:
    space = source.action_space
    low, high = (torch.as_tensor(b.reshape(-1)).float() for b in (space.low, space.high))
    clipped, furthest = 0, torch.zeros_like(low)
    for chunk in torch.split(actions, CHUNK):
        excess = torch.maximum(low - chunk, chunk - high)
        furthest = torch.maximum(furthest, excess.amax(0))
        clipped += int((excess > 0).any(1).sum())
    share = furthest / (high - low)
    if bool((share > OUTSIDE_TOLERANCE).any()):
        worst = int(share.argmax())
        raise DatasetError(
            f"`{source.id}` has actions far outside of their space: dimension {worst} lies in "
            f"[{actions[:, worst].min():.4g}, {actions[:, worst].max():.4g}], its bounds are "
            f"[{low[worst]:.4g}, {high[worst]:.4g}]. They are in other units, or were stored "
            "before the environment clipped them: rescale or clip them and record again."
        )
    if clipped:
        for chunk in torch.split(actions, CHUNK):
            torch.clamp(chunk, low, high, out=chunk)
    return clipped


def _download(name: str, local_id: str, root: Path) -> None:
    import minari

    stage = root / f".download-{local_id.replace('/', '_')}"
    # Minari takes a folder that exists for a finished download.
    shutil.rmtree(stage, ignore_errors=True)
    # It looks for the namespace on its own hub even when the dataset is on another.
    describe_namespaces(local_id, stage)
    try:
        # Minari reports on standard output, which may be somebody's JSON.
        with datasets_in(stage), contextlib.redirect_stdout(sys.stderr):
            minari.download_dataset(name)
    except ImportError as error:
        raise DatasetError(
            f"Downloading `{name}` needs another package ({error}): "
            "pip install 'gem-policy[train,hub]'."
        ) from error
    except Exception as error:  # whatever a network can do
        raise DatasetError(
            f"`{name}` could not be downloaded ({type(error).__name__}: {error}). Check the name "
            "with `minari list remote` and the connection; MINARI_REMOTE names the remote."
        ) from error
    for found in sorted(stage.rglob("metadata.json")):
        if found.parent.name == "data":
            target = root / found.parent.parent.relative_to(stage)
            describe_namespaces(target.relative_to(root).as_posix(), root)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                found.parent.parent.rename(target)
    shutil.rmtree(stage, ignore_errors=True)


def _not_found(name: str, local_id: str, root: Path) -> str:
    from gem_policy.training import recipes

    here = local_ids()
    message = f"No dataset `{name}` in {root} (MINARI_DATASETS_PATH decides where that is)."
    if local_id in recipes.names():
        return f"{message} Make it: `gem-policy datasets make {local_id}`."
    known = {known.lower(): known for known in (*here, *recipes.names())}
    close = difflib.get_close_matches(local_id.lower(), known, n=1, cutoff=0.7)
    if close:
        message += f" Did you mean `{known[close[0]]}`?"
    return (
        f"{message} Download it with --download, or name a folder that holds "
        f"data/metadata.json. Datasets here: {', '.join(here[:10]) or 'none'}."
    )


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)


def _number(value: object) -> float | None:
    return None if value is None else float(value)  # type: ignore[arg-type]


__all__ = [
    "Dataset",
    "EpisodeSummary",
    "Source",
    "TransitionBatch",
    "Transitions",
    "load",
    "local_ids",
    "locate",
    "open_source",
]
