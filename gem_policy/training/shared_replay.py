"""The transitions of several seeds on the device once, whatever each of them holds out.

A seed decides which episodes are kept for validation, and so also the statistics of the
observations. What differs is kept per seed: the numbers of its transitions and its statistics,
later its advantages or weights. The rest is there once. With 8-dimensional observations and four
critics one more seed costs 24 bytes a transition, where a replay of its own costs 92.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    reward_factor,
    training_numbers,
)
from gem_policy.training.replay import Batch, Replay, Sampler


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

    @property
    def device(self) -> torch.device:
        """Where the transitions lie."""
        return self.numbers.device

    def batch(self, chosen: Int[Tensor, "seeds part"]) -> Batch:
        """The transitions with the given numbers among each seed's own, one seed's after another.

        Bit for bit those of the seeds' own replays.
        """
        place = (chosen + self.starts.unsqueeze(-1)).flatten()
        raw = self.everything.batch(self.numbers[place].long())
        return replace(
            raw,
            observations=self._normalize(raw.observations),
            next_observations=self._normalize(raw.next_observations),
            ahead=replace(raw.ahead, observations=self._normalize(raw.ahead.observations)),
            advantages=self.advantages[place],
            weights=self.weights[place],
        )

    def _normalize(self, rows: Float[Tensor, "batch obs"]) -> Float[Tensor, "batch obs"]:
        """By each seed's own statistics."""
        parts = rows.reshape(len(self.starts), -1, rows.shape[-1])
        return ((parts - self.mean.unsqueeze(1)) / self.std.unsqueeze(1)).reshape(rows.shape)


def share(dataset: Dataset, configs: Sequence[TrainConfig], device: torch.device) -> SharedReplay:
    """The transitions that runs with these settings would train on, different in the seed only.

    Raises:
        TrainingError: There is nothing to learn from; see `prepare`.
    """
    numbers = [training_numbers(dataset, config) for config in configs]
    # Prepared as a run of its own prepares it, one seed at a time, for the very same statistics.
    normalizers = [prepare(dataset, config, torch.device("cpu")).normalizer for config in configs]
    lengths = torch.tensor([len(own) for own in numbers])
    scaler, factor = action_scaler(dataset), reward_factor(dataset, configs[0])
    everything = replay(dataset.transitions, None, scaler, configs[0], factor, device)
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
        ends = [*shared.starts[1:].tolist(), len(shared.numbers)]
        self._samplers = [
            Sampler(end - start, config.batch_size, config.seed, phase, shared.device)
            for start, end, config in zip(shared.starts.tolist(), ends, configs, strict=True)
        ]

    def __call__(self, step: int) -> Int[Tensor, "seeds part"]:
        """Numbers of the transitions of update ``step``, among each seed's own."""
        return torch.stack([sampler(step) for sampler in self._samplers])
