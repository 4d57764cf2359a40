"""A dataset's arrays as they are: unlike the loader, this collects what is wrong and goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from gem_policy.errors import DatasetError
from gem_policy.training.dataset import action_space_problem
from gem_policy.training.doctor.report import Finding
from gem_policy.training.location import Source
from gem_policy.training.storages import RawEpisode, leaves, read_episodes

Array = NDArray[Any]


@dataclass(frozen=True)
class Evidence:
    """All aligned episodes of a dataset, laid end to end.

    Attributes:
        source: What the dataset says about itself.
        numbers: Number of each episode in the dataset, shape (episodes,).
        lengths: Steps of each episode, shape (episodes,).
        observations: float32, flattened, `steps + episodes` rows.
        actions: float32, shape (steps, action).
        rewards: float64, shape (steps,).
        terminations: bool, shape (steps,).
        truncations: bool, shape (steps,).
        dimensions: A name for each column of the observations.
    """

    source: Source
    numbers: Array
    lengths: Array
    observations: Array
    actions: Array
    rewards: Array
    terminations: Array
    truncations: Array
    dimensions: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.rewards)

    @property
    def episode(self) -> Array:
        """Which episode each step belongs to, from 0, shape (steps,)."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def row(self) -> Array:
        """In which row of the observations each step begins, shape (steps,)."""
        return np.arange(self.steps) + self.episode

    @property
    def returns(self) -> Array:
        """Undiscounted sum of rewards of each episode."""
        return np.bincount(self.episode, weights=self.rewards, minlength=len(self.lengths))

    @property
    def last(self) -> Array:
        """The last step of each episode."""
        return np.cumsum(self.lengths) - 1

    def sample(self, count: int) -> Array:
        """At most `count` steps, evenly chosen by a fixed seed, in order."""
        if self.steps <= count:
            return np.arange(self.steps)
        chosen = np.random.default_rng(0).choice(self.steps, count, replace=False)
        return np.sort(chosen)


def gather(source: Source) -> tuple[Evidence | None, list[Finding]]:
    """Read everything that can be read.

    Returns:
        The evidence, None when nothing at all fits together; and what kept episodes out of it.
    """
    try:
        flat = leaves(source.observation_space)
    except DatasetError as error:
        return None, [Finding("observation-space", "error", str(error), "Choose other data.")]
    space = source.action_space
    findings = list(_refused_actions(space))
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        return None, findings
    good: list[RawEpisode] = []
    bad: list[RawEpisode] = []
    try:
        for episode in read_episodes(
            source.folder,
            source.file_format,
            source.total_episodes,
            flat,
            int(np.prod(space.shape)),
        ):
            (good if _aligned(episode) else bad).append(episode)
    except DatasetError as error:
        findings.append(
            Finding("unreadable", "error", str(error), "Download or make the dataset again.")
        )
    if bad:
        findings.append(_misaligned(bad, source))
    if source.total_episodes == 0:
        findings.append(
            Finding(
                "no-episodes",
                "error",
                "The dataset has no episodes; training needs 2 at least.",
                "Record some: one to learn from and one to check against are the least.",
            )
        )
    if not good:
        return None, findings
    return _collect(source, good, _names(source.observation_space)), findings


def _refused_actions(space: gym.Space[Any]) -> Iterator[Finding]:
    """What the loader would refuse, in its words."""
    problem = action_space_problem(space)
    if problem is not None:
        told, advice = problem
        unbounded = isinstance(space, gym.spaces.Box) and not space.is_bounded("both")
        code = "unbounded-actions" if unbounded else "action-space"
        yield Finding(code, "error", f"The dataset has {told}.", advice)


def _aligned(episode: RawEpisode) -> bool:
    steps = len(episode.rewards)
    equal = (episode.actions, episode.terminations, episode.truncations)
    return (
        steps > 0
        and all(len(array) == steps for array in equal)
        and all(len(array) == steps + 1 for array in episode.observations)
    )


def _misaligned(bad: Sequence[RawEpisode], source: Source) -> Finding:
    first = bad[0]
    rows = sorted({len(array) for array in first.observations})
    return Finding(
        "misaligned",
        "error",
        f"{len(bad)} of {source.total_episodes} episodes are misaligned; episode {first.number} "
        f"has {rows} observations to {len(first.actions)} actions and {len(first.rewards)} "
        "rewards, expected T + 1 observations to T of the rest.",
        "Record it again with the last observation kept; dropping rows to make the lengths agree "
        "pairs actions with other states.",
    )


def _collect(source: Source, episodes: list[RawEpisode], names: tuple[str, ...]) -> Evidence:
    with np.errstate(over="ignore"):
        return Evidence(
            source=source,
            numbers=np.array([episode.number for episode in episodes]),
            lengths=np.array([len(episode.rewards) for episode in episodes]),
            observations=np.concatenate(
                [np.concatenate(list(e.observations), axis=1) for e in episodes]
            ).astype(np.float32, copy=False),
            actions=np.concatenate([e.actions for e in episodes]).astype(np.float32, copy=False),
            rewards=np.concatenate([e.rewards for e in episodes]).astype(np.float64),
            terminations=np.concatenate([e.terminations for e in episodes]).astype(bool),
            truncations=np.concatenate([e.truncations for e in episodes]).astype(bool),
            dimensions=names,
        )


def _names(space: gym.Space[Any]) -> tuple[str, ...]:
    return tuple(
        ".".join((*leaf.path, str(index))) for leaf in leaves(space) for index in range(leaf.size)
    )
