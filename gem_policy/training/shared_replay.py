"""The transitions of several seeds on the device once, whatever each of them holds out.

A seed decides which episodes are kept for validation, and so also the statistics of the
observations. What differs is kept per seed: the numbers of its transitions and its statistics,
later its advantages or weights. The rest is there once. With 8-dimensional observations and four
critics one more seed costs 24 bytes a transition, where a replay of its own costs 96.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.preparation import (
    action_scaler,
    prepare,
    replay,
    training_numbers,
)
from gem_policy.training.replay import (
    CHUNK,
    FIELDS,
    ROWS,
    Batch,
    Replay,
    Sampler,
    evenly_spaced_numbers,
)
from gem_policy.training.reward_scale import RewardScale


@dataclass(frozen=True)
class SharedReplay:
    """Transitions of S seeds; a seed's are those that its own `Replay` would hold, in its order.

    Attributes:
        everything: All transitions of the dataset, held-out ones too, observations as they are.
        mean: Of each seed's training observations.
        std: The same.
        numbers: Each seed's transitions, one seed after the other, as numbers in ``everything``.
        starts: Where each seed's begin in ``numbers``.
        advantages: What the critics are fitted to, beside ``numbers``; no columns until the values
            are known.
        weights: In the actor's loss, beside ``numbers``; ones until the critics are known.
    """

    everything: Replay
    mean: Float[Tensor, "seeds obs"]
    std: Float[Tensor, "seeds obs"]
    numbers: Int[Tensor, " transitions"]
    starts: Int[Tensor, " seeds"]
    advantages: Float[Tensor, "transitions members"]
    weights: Float[Tensor, " transitions"]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def device(self) -> torch.device:
        """Where the transitions lie."""
        return self.numbers.device

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Where each seed's transitions begin and end in ``numbers``."""
        starts = self.starts.tolist()
        return list(zip(starts, [*starts[1:], len(self.numbers)], strict=True))

    def batch(self, chosen: Int[Tensor, "seeds part"], reads: frozenset[str] = FIELDS) -> Batch:
        """The transitions with the given numbers among each seed's own, one seed's after another.

        Bit for bit those of the seeds' own replays; fields that are not in ``reads`` are empty.
        """
        return self._taken(self.place(chosen), reads, self.mean, self.std)

    def parts(self, reads: frozenset[str]) -> Iterator[Batch]:
        """All transitions of the first seed in order, some at a time, then of the others."""
        for seed, (start, end) in enumerate(self.bounds):
            own = slice(seed, seed + 1)
            for place in torch.split(torch.arange(start, end, device=self.device), ROWS):
                yield self._taken(place, reads, self.mean[own], self.std[own])

    def evenly_spaced(self, seed: int, rows: int, reads: frozenset[str]) -> Batch:
        """At most ``rows`` transitions of one seed, those that its own replay would give."""
        (start, end), own = self.bounds[seed], slice(seed, seed + 1)
        place = evenly_spaced_numbers(end - start, rows, self.device) + start
        return self._taken(place, reads, self.mean[own], self.std[own])

    def place(self, chosen: Int[Tensor, "seeds part"]) -> Int[Tensor, " batch"]:
        """Where the transitions with the given numbers stand among the `parts`."""
        return (chosen + self.starts.unsqueeze(-1)).flatten()

    def _taken(
        self,
        place: Int[Tensor, " batch"],
        reads: frozenset[str],
        mean: Float[Tensor, "owners obs"],
        std: Float[Tensor, "owners obs"],
    ) -> Batch:
        """Transitions by their place, an equal number for each of some seeds, one after another."""
        raw = self.everything.batch(self.numbers[place].long(), reads)
        return replace(
            raw,
            observations=_normalized(raw.observations, mean, std),
            next_observations=_normalized(raw.next_observations, mean, std),
            ahead=replace(raw.ahead, observations=_normalized(raw.ahead.observations, mean, std)),
            advantages=self.advantages[place] if "advantages" in reads else self.advantages[:0],
            weights=self.weights[place] if "weights" in reads else self.weights[:0],
        )


def _normalized(
    rows: Float[Tensor, "batch obs"],
    mean: Float[Tensor, "owners obs"],
    std: Float[Tensor, "owners obs"],
) -> Float[Tensor, "batch obs"]:
    """Observations of some seeds, an equal number of each, by each one's statistics."""
    if len(rows) == 0:
        return rows
    parts = rows.reshape(len(mean), -1, rows.shape[-1])
    return ((parts - mean.unsqueeze(1)) / std.unsqueeze(1)).reshape(rows.shape)


def share(dataset: Dataset, configs: Sequence[TrainConfig], device: torch.device) -> SharedReplay:
    """The transitions that runs with these settings would train on, different in the seed only.

    Raises:
        TrainingError: There is nothing to learn from; see `prepare`.
    """
    numbers = [training_numbers(dataset, config) for config in configs]
    # Prepared as a run of its own prepares it, one seed at a time, for the very same statistics.
    normalizers = [prepare(dataset, config, torch.device("cpu")).normalizer for config in configs]
    lengths = torch.tensor([len(own) for own in numbers])
    scaler, scale = action_scaler(dataset), RewardScale.of(dataset, configs[0])
    everything = replay(dataset.transitions, None, scaler, configs[0], scale, device)
    total = int(lengths.sum())
    return SharedReplay(
        everything=everything,
        mean=torch.stack([own.mean for own in normalizers]).to(device),
        std=torch.stack([own.std for own in normalizers]).to(device),
        numbers=torch.cat([own.int() for own in numbers]).to(device),
        starts=(lengths.cumsum(0) - lengths).to(device),
        advantages=torch.empty(total, 0, device=device),
        weights=torch.ones(total, device=device),
    )


class SharedSampler:
    """Each seed's own `Sampler`, side by side."""

    def __init__(self, shared: SharedReplay, configs: Sequence[TrainConfig], phase: int) -> None:
        self._samplers = [
            Sampler(end - start, config.batch_size, config.seed, phase)
            for (start, end), config in zip(shared.bounds, configs, strict=True)
        ]
        self._device = shared.device
        self._chunk, self._drawn = -1, torch.empty(0, 0, 0, dtype=torch.long)

    def __call__(self, step: int) -> Int[Tensor, "seeds part"]:
        """Numbers of the transitions of update ``step``, among each seed's own."""
        chunk, place = divmod(step, CHUNK)
        if chunk != self._chunk:
            drawn = torch.stack([sampler.drawn(chunk) for sampler in self._samplers], 1)
            self._chunk, self._drawn = chunk, drawn.to(self._device)
        return self._drawn[place]
