"""Experience as tensors: every observation is stored once, and a batch is gathered by index."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from zlib import crc32

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gem_policy.errors import DatasetError


@dataclass(frozen=True)
class TransitionBatch:
    """Steps `(s, a, r, s', terminated)` in environment units; the leading axes agree.

    Attributes:
        observations: Before the action.
        actions: As the simulator received them.
        rewards: Of the step.
        next_observations: After the action, also where the episode ends.
        terminated: Whether the task itself ended; nothing follows to bootstrap from.
    """

    observations: Float[Tensor, "*batch obs"]
    actions: Float[Tensor, "*batch action"]
    rewards: Float[Tensor, "*batch"]
    next_observations: Float[Tensor, "*batch obs"]
    terminated: Bool[Tensor, "*batch"]


@dataclass(frozen=True)
class Transitions:
    """Whole episodes laid end to end.

    An episode of `T` steps takes `T` places in the arrays of steps and `T + 1` rows of
    `observations`, so step `t` of the data begins at row `t + episode[t]` and ends one row later:
    no observation is stored twice.

    Attributes:
        observations: float32, environment units, `steps + episodes` rows.
        actions: float32, environment units.
        rewards: float32.
        terminated: The task itself ended with this step.
        truncated: The episode was cut after this step for another reason, such as a time limit.
        episode: int64; which episode a step belongs to: 0 first, never falling, no number left out.

    Raises:
        DatasetError: if sizes do not fit together or episodes are not numbered so.
    """

    observations: Float[Tensor, "rows obs"]
    actions: Float[Tensor, "steps action"]
    rewards: Float[Tensor, " steps"]
    terminated: Bool[Tensor, " steps"]
    truncated: Bool[Tensor, " steps"]
    episode: Int[Tensor, " steps"]

    def __post_init__(self) -> None:
        """Check that the tensors fit together."""
        steps = len(self.rewards)
        sizes = {f.name: len(getattr(self, f.name)) for f in fields(self)}
        rows = sizes.pop("observations")
        if steps == 0 or set(sizes.values()) != {steps}:
            raise DatasetError(f"Every array of steps needs the same length >= 1, got {sizes}.")
        jumps = self.episode[1:] - self.episode[:-1]
        if int(self.episode[0]) != 0 or bool(((jumps != 0) & (jumps != 1)).any()):
            raise DatasetError("`episode` must count 0, 0, ..., 1, 1, ... without gaps.")
        if rows != steps + int(self.episode[-1]) + 1:
            raise DatasetError(
                f"{steps} steps in {int(self.episode[-1]) + 1} episodes need "
                f"{steps + int(self.episode[-1]) + 1} observations (one more than steps in each "
                f"episode), got {rows}."
            )

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.rewards)

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.observations) - len(self)

    @property
    def nbytes(self) -> int:
        """Memory of all tensors in bytes."""
        return sum(getattr(self, field.name).nbytes for field in fields(self))

    @property
    def checksum(self) -> str:
        """CRC-32 of all tensors as 8 hex digits: other data have another, but for one in 2^32."""
        found = 0
        for field in fields(self):
            found = crc32(getattr(self, field.name).cpu().contiguous().numpy().data, found)
        return f"{found:08x}"

    @property
    def lengths(self) -> Int[Tensor, " episodes"]:
        """Steps of each episode."""
        return torch.bincount(self.episode, minlength=self.episodes)

    @property
    def returns(self) -> Float[Tensor, " episodes"]:
        """Undiscounted sum of rewards of each episode, float64."""
        total = torch.zeros(self.episodes, dtype=torch.float64, device=self.rewards.device)
        return total.index_add_(0, self.episode, self.rewards.double())

    def batch(self, index: Int[Tensor, "*batch"]) -> TransitionBatch:
        """Gather steps.

        Args:
            index: Any shape, each entry in [0, len(self)), on the device of the data.
        """
        rows = index + self.episode[index]
        return TransitionBatch(
            observations=self.observations[rows],
            actions=self.actions[index],
            rewards=self.rewards[index],
            next_observations=self.observations[rows + 1],
            terminated=self.terminated[index],
        )

    def all(self) -> TransitionBatch:
        """Every step, in order; this does copy the observations, twice."""
        return self.batch(torch.arange(len(self), device=self.rewards.device))

    def select(self, episodes: Int[Tensor, " selected"]) -> Transitions:
        """The given episodes, in the order of the data, numbered anew from 0.

        Raises:
            DatasetError: if the selection is empty.
        """
        keep = torch.zeros(self.episodes, dtype=torch.bool, device=self.episode.device)
        keep[episodes.to(self.episode.device)] = True
        if not bool(keep.any()):
            raise DatasetError("No episode is left after the selection; loosen the condition.")
        steps = keep[self.episode]
        rows = keep[_row_episodes(self.lengths)]
        number = torch.cumsum(keep, 0) - 1
        return Transitions(
            observations=self.observations[rows],
            actions=self.actions[steps],
            rewards=self.rewards[steps],
            terminated=self.terminated[steps],
            truncated=self.truncated[steps],
            episode=number[self.episode[steps]],
        )

    def to(self, device: str | torch.device) -> Transitions:
        """The same data on `device`."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def _row_episodes(lengths: Int[Tensor, " episodes"]) -> Int[Tensor, " rows"]:
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths + 1)
