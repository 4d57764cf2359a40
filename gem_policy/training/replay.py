"""Normalized transitions on the device, and the batches drawn from them.

Batches are a function of (seed, phase, update) alone, so that a resumed run sees the very batches
that the uninterrupted one would have seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 512  # updates whose batch indices are drawn at once: seeding a generator has a cost


@dataclass(frozen=True)
class Batch:
    """Transitions in normalized units, ready for a loss."""

    observations: Float[Tensor, "batch obs"]
    actions: Float[Tensor, "batch action"]
    rewards: Float[Tensor, " batch"]
    next_observations: Float[Tensor, "batch obs"]
    continues: Float[Tensor, " batch"]
    weights: Float[Tensor, " batch"]


@dataclass(frozen=True)
class Replay:
    """All transitions: observation rows once, with the row of every transition.

    Attributes:
        rows: Observations of all episodes, normalized, T+1 per episode.
        index: Row of each transition's observation; the next observation is the row after it.
        actions: In normalized action units.
        rewards: Scaled and shifted.
        continues: 0 where the return ends, else 1.
        weights: Weight of each transition in the actor's loss; ones until the critics are known.
    """

    rows: Float[Tensor, "rows obs"]
    index: Int[Tensor, " transitions"]
    actions: Float[Tensor, "transitions action"]
    rewards: Float[Tensor, " transitions"]
    continues: Float[Tensor, " transitions"]
    weights: Float[Tensor, " transitions"]

    def __len__(self) -> int:
        return self.index.shape[0]

    def batch(self, chosen: Int[Tensor, " batch"]) -> Batch:
        """The transitions with the given numbers."""
        row = self.index[chosen]
        return Batch(
            self.rows[row],
            self.actions[chosen],
            self.rewards[chosen],
            self.rows[row + 1],
            self.continues[chosen],
            self.weights[chosen],
        )


class Sampler:
    """Uniform transition numbers with replacement, for update 0, 1, 2, ... of a phase."""

    def __init__(self, transitions: int, batch_size: int, seed: int, phase: int) -> None:
        self.transitions, self.batch_size = transitions, batch_size
        self.seed, self.phase = seed, phase
        self._chunk, self._drawn = -1, torch.empty(0, 0, dtype=torch.long)

    def __call__(self, step: int) -> Int[Tensor, " batch"]:
        """Numbers of the transitions of update ``step``; the same whenever it is asked."""
        chunk, place = divmod(step, CHUNK)
        if chunk != self._chunk:
            generator = torch.Generator()
            # One stream per (seed, phase, chunk): the three numbers share 63 bits.
            generator.manual_seed((self.seed << 36) ^ (self.phase << 32) ^ chunk)
            self._drawn = torch.randint(
                self.transitions, (CHUNK, self.batch_size), generator=generator
            )
            self._chunk = chunk
        return self._drawn[place]
