"""Any Minari dataset as tensors: by id or by path, in every format that Minari writes.

    data = load("gem/pointmaze/large-v0")
    training, held_out = data.split(0.95, seed=0)
    batch = training.transitions.batch(torch.randint(len(training.transitions), (256,)))

Nothing here knows a dataset by its name. What cannot be trained on is refused in words; actions a
little outside of their space are clipped and counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from gem_policy.config import require_count
from gem_policy.errors import DatasetError
from gem_policy.training.columns import Columns, check_finite, clip_actions
from gem_policy.training.location import locate, open_source
from gem_policy.training.memory import LOADING, check_room, step_bytes
from gem_policy.training.storages import RawEpisode, leaves, read_episodes
from gem_policy.training.transitions import Transitions

# Gymnasium's own wrappers do not help: RescaleAction refuses infinite bounds, and TransformAction
# holds a function, which no description of an environment can hold.
_RECORD_AGAIN = (
    "in the environment itself, or in an ActionWrapper class of your own that is a "
    "gymnasium.utils.RecordConstructorArgs too (a wrapper made with a function makes Minari drop "
    "the environment's description), and record again."
)


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
            actions, actions of several axes, image observations, actions that are unbounded or
            cannot move, actions far outside of their space, NaN or infinite numbers, observations
            that do not fit the actions, a single episode; or if it does not fit into memory,
            before anything is read.
        DependencyError: if Minari or the library behind the file format is missing.
    """
    if max_steps is not None:
        require_count("max_steps", max_steps)
    folder = locate(dataset, download=download)
    source = open_source(folder)
    flat = leaves(source.observation_space)
    space = source.action_space
    problem = action_space_problem(space)
    if problem is not None:
        told, advice = problem
        raise DatasetError(f"`{source.id}` has {told}. {advice}")
    episodes = read_episodes(
        folder, source.file_format, source.total_episodes, flat, int(np.prod(space.shape))
    )
    sizes = sum(leaf.size for leaf in flat), int(np.prod(space.shape))
    limit = source.total_steps if max_steps is None else min(max_steps, source.total_steps)
    if episode_filter is None:
        check_room(source.id, limit, LOADING * step_bytes(*sizes), "Reading")
    columns = Columns(source, *sizes, limit)
    numbers = _fill(columns, episodes, episode_filter)
    if len(numbers) < 2:
        kept = "" if episode_filter is None else " that `episode_filter` keeps"
        kept += "" if max_steps is None else f" within max_steps={max_steps}"
        raise DatasetError(
            f"`{source.id}` has {len(numbers)} episode(s){kept}; training needs 2 at least, one "
            "to learn from and one to check against. Record more, or cut it into several."
        )
    transitions = columns.finish()
    check_finite(source, transitions, numbers)
    clipped = clip_actions(source, transitions.actions)
    return Dataset(
        id=source.id,
        transitions=transitions.to(device),
        numbers=torch.tensor(numbers, dtype=torch.int64),
        observation_space=source.observation_space,
        action_space=space,
        env_spec=_text(source.metadata.get("env_spec")),
        eval_env_spec=_text(source.metadata.get("eval_env_spec")),
        ref_min=source.metadata.get("ref_min_score"),
        ref_max=source.metadata.get("ref_max_score"),
        description=_text(source.metadata.get("description")) or "",
        recipe=source.metadata.get("recipe") or {},
        clipped_actions=clipped,
        metadata=source.metadata,
    )


def action_space_problem(space: gym.Space[Any]) -> tuple[str, str] | None:
    """What keeps a policy from acting in `space`, and what to do about it; None where nothing does.

    The first reads on after "the dataset has", without a full stop; the second is a sentence.
    """
    if not isinstance(space, gym.spaces.Box):
        told = f"a {type(space).__name__} action space; GEM proposes continuous actions and needs a"
        return f"{told} Box", "Choose a dataset with continuous actions."
    if not np.issubdtype(space.dtype, np.floating):
        return f"the action space {space}; expected floats", f"Make them floats {_RECORD_AGAIN}"
    with np.errstate(over="ignore"):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)  # as in training
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        told = f"the action space {space}; expected finite bounds, as float32 too"
        return told, f"Give it finite bounds {_RECORD_AGAIN}"
    if len(space.shape) != 1:
        return (
            f"actions of shape {space.shape}; expected one axis",
            f"Flatten them {_RECORD_AGAIN}",
        )
    still = np.nonzero(low >= high)[0].tolist()
    if still:
        told = f"the action space {space}; expected low < high, as float32 too, in every dimension"
        return told, f"Leave out the dimensions {still}, which cannot move, {_RECORD_AGAIN}"
    return None


def _fill(
    columns: Columns,
    episodes: Iterable[RawEpisode],
    condition: Callable[[EpisodeSummary], bool] | None,
) -> list[int]:
    """Read the episodes that meet `condition` until there is no more room; their numbers."""
    numbers = []
    for episode in episodes:
        columns.check(episode)
        if condition is not None and not condition(_summary(episode)):
            continue
        if not columns.append(episode):
            break
        numbers.append(episode.number)
    return numbers


def _summary(episode: RawEpisode) -> EpisodeSummary:
    return EpisodeSummary(
        number=episode.number,
        steps=len(episode.rewards),
        total_reward=float(np.sum(episode.rewards, dtype=np.float64)),
        terminated=bool(episode.terminations[-1]),
        truncated=bool(episode.truncations[-1]),
    )


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)
