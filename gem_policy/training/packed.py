"""The fields that a loss reads, side by side in one table: a batch is one row of it each.

On a GPU gathering a batch field by field takes as many kernels as there are fields, each of which
has next to nothing to do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from gem_policy.training.replay import Ahead, Batch, Replay
from gem_policy.training.shared_replay import SharedReplay

ALIGNMENT = 4  # numbers: rows of whole 16 bytes are gathered several times faster


class PackedTransitions:
    """A table of transitions.

    Args:
        transitions: All of them.
        reads: Fields to keep; the others are empty.
    """

    def __init__(self, transitions: Replay | SharedReplay, reads: frozenset[str]) -> None:
        self._place = transitions.place
        table, start = torch.empty(0, 0), 0
        for part in transitions.parts(reads):
            fields = _fields(part)
            self._layout = [
                (value.shape[-1] if value.dim() > 1 else 1, value.dim() == 1, len(value) > 0)
                for value in fields
            ]
            rows = _side_by_side([value for value in fields if len(value) > 0])
            if start == 0:
                table = rows.new_empty(len(transitions), rows.shape[-1])
            table[start : start + len(rows)] = rows
            start += len(rows)
        self.table: Float[Tensor, "transitions numbers"] = table

    def batch(self, chosen: Int[Tensor, "*part"]) -> Batch:
        """The transitions with the given numbers."""
        rows = torch.index_select(self.table, 0, self._place(chosen))
        found, start = [], 0
        for width, flat, read in self._layout:
            value = rows[:, start : start + width] if read else rows[:0, :1].expand(0, width)
            found.append(value[:, 0] if flat else value)
            start += width * read
        return _batch(found)


def _fields(batch: Batch) -> list[Tensor]:
    """All tensors of a batch, in order."""
    ahead = batch.ahead
    return [
        batch.observations,
        batch.actions,
        batch.rewards,
        batch.next_observations,
        batch.continues,
        batch.lives,
        ahead.returns,
        ahead.discounts,
        ahead.observations,
        batch.advantages,
        batch.weights,
    ]


def _batch(fields: Sequence[Tensor]) -> Batch:
    """What `_fields` came from."""
    return Batch(
        observations=fields[0],
        actions=fields[1],
        rewards=fields[2],
        next_observations=fields[3],
        continues=fields[4],
        lives=fields[5],
        ahead=Ahead(returns=fields[6], discounts=fields[7], observations=fields[8]),
        advantages=fields[9],
        weights=fields[10],
    )


def _side_by_side(fields: Sequence[Tensor]) -> Tensor:
    """As columns of one matrix, with zeros behind where its rows would not be aligned."""
    columns = [value.unsqueeze(-1) if value.dim() == 1 else value for value in fields]
    width = sum(column.shape[-1] for column in columns)
    return F.pad(torch.cat(columns, -1), (0, -width % ALIGNMENT))
