"""An optimizer that works on pieces of its parameters, for updates recorded on a GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

PIECES, SMALLEST_PIECE = 24, 2048  # of all parameters; numbers


def in_pieces(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    moments: Sequence[Mapping[str, Tensor]],
) -> tuple[torch.optim.Optimizer, list[tuple[Tensor, ...]]]:
    """The same optimizer for pieces of the parameters, in the same memory.

    Its kernel gives a block 65 536 numbers of one tensor to go through, and the few blocks that
    come of it would be the longest step of an update. Its rate becomes a tensor of the device,
    where a recorded update finds it.

    Args:
        optimizer: Adam or AdamW, fused.
        parameters: All that it trains.
        moments: ``step``, ``exp_avg`` and ``exp_avg_sq`` of each.

    Returns:
        The optimizer, and the pieces of each parameter, which take its gradient. The steps of a
        first piece are the parameter's; those of the others follow it.
    """
    size = max(SMALLEST_PIECE, math.ceil(sum(p.numel() for p in parameters) / PIECES))
    pieces = [torch.split(p.detach().view(-1), size) for p in parameters]
    own = {id(p): i for i, p in enumerate(parameters)}
    groups = [
        {
            **group,
            "params": [piece for p in group["params"] for piece in pieces[own[id(p)]]],
            "lr": torch.zeros((), device=parameters[0].device),
            "capturable": True,
        }
        for group in optimizer.param_groups
    ]
    kind: Any = type(optimizer)
    made: torch.optim.Optimizer = kind(groups)
    for parts, whole in zip(pieces, moments, strict=True):
        means, squares = (torch.split(whole[k].view(-1), size) for k in ("exp_avg", "exp_avg_sq"))
        for number, (piece, mean, square) in enumerate(zip(parts, means, squares, strict=True)):
            step = whole["step"] if number == 0 else whole["step"].clone()
            made.state[piece] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
    return made, pieces
