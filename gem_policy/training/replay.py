"""Normalized transitions on the device, and the batches drawn from them.

Batches are a function of (seed, phase, update) alone, so that a resumed run sees the very batches
that the uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

FIELDS = frozenset(
    ("observations", "actions", "rewards", "next_observations", "continues", "lives", "ahead")
    + ("advantages", "weights")
)
ROWS = 65_536  # transitions of a part
CHUNK = 512  # updates whose batch indices are drawn at once: seeding a generator has a cost


@dataclass(frozen=True)
class Ahead:
    """The n-step returns of a batch: ``returns + discounts * V(observations)``.

    Attributes:
        returns: Discounted rewards of the next n steps, or of fewer where the episode ends.
        discounts: gamma to the number of those steps; 0 where the return ends among them.
        observations: What follows them, normalized.
    """

    returns: Float[Tensor, " batch"]
    discounts: Float[Tensor, " batch"]
    observations: Float[Tensor, "batch obs"]


@dataclass(frozen=True)
class Batch:
    """Transitions in normalized units, ready for a loss.

    All fields have as many rows as ``observations``; or none, where the loss does not read them.
    """

    observations: Float[Tensor, "batch obs"]
    actions: Float[Tensor, "_ action"]
    rewards: Float[Tensor, " _"]
    next_observations: Float[Tensor, "_ obs"]
    continues: Float[Tensor, " _"]
    lives: Float[Tensor, " _"]
    ahead: Ahead
    advantages: Float[Tensor, "_ members"]
    weights: Float[Tensor, " _"]


@dataclass(frozen=True)
class Replay:
    """All transitions: observation rows once, with the row of every transition.

    Attributes:
        rows: Observations of all episodes, normalized, T+1 per episode.
        index: Row of each transition's observation; the next observation is the row after it.
        actions: In normalized action units.
        rewards: Scaled and shifted.
        continues: 0 where the return ends, else 1.
        lives: 0 where the episode terminates, else 1; ``TrainConfig.terminal_reward`` ends the
            return alone.
        ahead_returns: Discounted rewards of the next n steps; see `look_ahead`.
        ahead_discounts: What the value after them is multiplied with.
        ahead_rows: Row of the observation after them.
        advantages: What the critics are fitted to; no columns until the values are known.
        episode_weights: Weight of each transition's whole episode.
        weights: Weight of each transition in the actor's loss; ones until the critics are known.
        unit: What the advantages were divided by; 1 until the values are known.
    """

    rows: Float[Tensor, "rows obs"]
    index: Int[Tensor, " transitions"]
    actions: Float[Tensor, "transitions action"]
    rewards: Float[Tensor, " transitions"]
    continues: Float[Tensor, " transitions"]
    lives: Float[Tensor, " transitions"]
    ahead_returns: Float[Tensor, " transitions"]
    ahead_discounts: Float[Tensor, " transitions"]
    ahead_rows: Int[Tensor, " transitions"]
    advantages: Float[Tensor, "transitions members"]
    episode_weights: Float[Tensor, " transitions"]
    weights: Float[Tensor, " transitions"]
    unit: float = 1.0

    def __len__(self) -> int:
        return self.index.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the transitions lie."""
        return self.index.device

    def batch(self, chosen: Int[Tensor, " batch"], reads: frozenset[str] = FIELDS) -> Batch:
        """The transitions with the given numbers.

        Args:
            chosen: Their numbers.
            reads: Fields that are wanted; the others are empty.
        """
        row = torch.index_select(self.index, 0, chosen)
        after = row + 1 if "next_observations" in reads else row
        ahead = _take(self.ahead_rows, chosen, "ahead" in reads)
        return Batch(
            _take(self.rows, row, "observations" in reads),
            _take(self.actions, chosen, "actions" in reads),
            _take(self.rewards, chosen, "rewards" in reads),
            _take(self.rows, after, "next_observations" in reads),
            _take(self.continues, chosen, "continues" in reads),
            _take(self.lives, chosen, "lives" in reads),
            Ahead(
                _take(self.ahead_returns, chosen, "ahead" in reads),
                _take(self.ahead_discounts, chosen, "ahead" in reads),
                _take(self.rows, ahead, "ahead" in reads),
            ),
            _take(self.advantages, chosen, "advantages" in reads),
            _take(self.weights, chosen, "weights" in reads),
        )

    def parts(self, reads: frozenset[str]) -> Iterator[Batch]:
        """All transitions in order, some at a time."""
        for chosen in torch.split(torch.arange(len(self), device=self.device), ROWS):
            yield self.batch(chosen, reads)

    def place(self, chosen: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Where the transitions with the given numbers stand among the `parts`."""
        return chosen


def _take(values: Tensor, where: Tensor, wanted: bool) -> Tensor:
    """The rows with the given numbers, or none where they are not wanted."""
    # What `values[where]` does, at half its cost per call.
    return torch.index_select(values, 0, where) if wanted else values[:0]


def evenly_spaced_numbers(
    transitions: int, rows: int, device: torch.device
) -> Int[Tensor, " rows"]:
    """At most ``rows`` of the numbers below ``transitions``, evenly spaced; always the same."""
    count = min(rows, transitions)
    return torch.arange(count, device=device) * transitions // max(count, 1)


def look_ahead(
    rewards: Float[Tensor, " transitions"],
    continues: Float[Tensor, " transitions"],
    episode: Int[Tensor, " transitions"],
    steps: int,
    discount: float,
) -> tuple[
    Float[Tensor, " transitions"], Float[Tensor, " transitions"], Int[Tensor, " transitions"]
]:
    """n-step returns of every transition, never across the end of an episode.

    Returns:
        The discounted rewards of the next ``steps`` steps (fewer where the episode or the return
        ends), the discount of the value after them (0 where the return ended), and how many steps
        they were.
    """
    total = len(rewards)
    returns, discounts = torch.zeros_like(rewards), torch.ones_like(rewards)
    taken = torch.zeros(total, dtype=torch.long, device=rewards.device)
    for ahead in range(min(steps, total)):
        here = slice(0, total - ahead)  # transitions that have one ``ahead`` places further on
        same = (episode[here] == episode[ahead:]) & (taken[here] == ahead) & (discounts[here] > 0)
        returns[here] += torch.where(same, discounts[here] * rewards[ahead:], 0.0)
        discounts[here] *= torch.where(same, discount * continues[ahead:], 1.0)
        taken[here] += same.long()
    return returns, discounts, taken


class Sampler:
    """Uniform transition numbers with replacement, for update 0, 1, 2, ... of a phase.

    Args:
        transitions: How many there are.
        batch_size: How many numbers an update needs.
        seed: Of the run.
        phase: Of the run, so that phases see other batches.
        device: Where the numbers are given. They are drawn on the CPU and moved there in chunks:
            moved one by one, each would wait for the update before.
    """

    def __init__(
        self,
        transitions: int,
        batch_size: int,
        seed: int,
        phase: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.transitions, self.batch_size = transitions, batch_size
        self.seed, self.phase, self.device = seed, phase, device
        self._chunk, self._drawn = -1, torch.empty(0, 0, dtype=torch.long)

    def __call__(self, step: int) -> Int[Tensor, " batch"]:
        """Numbers of the transitions of update ``step``; the same whenever it is asked."""
        chunk, place = divmod(step, CHUNK)
        if chunk != self._chunk:
            self._chunk, self._drawn = chunk, self.drawn(chunk).to(self.device)
        return self._drawn[place]

    def drawn(self, chunk: int) -> Int[Tensor, "chunk batch"]:
        """Numbers of the transitions of `CHUNK` updates, the first of them ``chunk * CHUNK``."""
        # One stream per (seed, phase, chunk), mixed into the 32 bits that the generator uses of a
        # seed: it ignores all above them.
        mixed = np.random.SeedSequence((self.seed, self.phase, chunk)).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        return torch.randint(self.transitions, (CHUNK, self.batch_size), generator=generator)
