"""How much the critics disagree off the data, against on it: what pessimism has to work with."""

from __future__ import annotations

import warnings

import torch

from gem_policy.critics import Critics
from gem_policy.errors import TrainingWarning
from gem_policy.training.replay import Batch


@torch.no_grad()
def critic_spread(critics: Critics, batch: Batch, seed: int) -> dict[str, float | None]:
    """Standard deviation over the members, at the data's actions and at random ones.

    Args:
        critics: The finished ensemble.
        batch: Held-out transitions.
        seed: Of the random actions, one for each state, uniform in the action box.

    Returns:
        ``data`` and ``uniform``: mean over states of the members' standard deviation (divided by
        E), in units of the critics; ``ratio``: uniform / data, None if the members agree to the
        bit at all data (one member does).
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(batch.actions.shape, generator=generator).to(batch.actions) * 2 - 1
    both = torch.stack([batch.actions, drawn], dim=-2)
    spread = critics(batch.observations, both).std(0, correction=0).mean(0)
    data, uniform = (float(x) for x in spread)
    return {"data": data, "uniform": uniform, "ratio": uniform / data if data > 0 else None}


def warn_of_small_spread(spread: dict[str, float | None]) -> None:
    """Give a `TrainingWarning` if the critics agree better off the data than on it."""
    ratio = spread["ratio"]
    if ratio is not None and ratio < 1:
        warnings.warn(
            f"The critics disagree less at random actions than at the data's (ratio {ratio:.2f} of "
            "their standard deviations): their lower bound will not hold back from actions that "
            "the data do not have. Rely on support_weight, or train with more critics or more "
            "critic_updates; `critic_spread` in the checkpoint's provenance has the numbers.",
            TrainingWarning,
            stacklevel=2,
        )
