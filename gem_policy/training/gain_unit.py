"""What is a large gain to these critics: the unit of `least_gain` and `gain_per_nat`."""

from __future__ import annotations

import torch

from gem_policy.critics import Critics
from gem_policy.training.replay import Batch

ROWS = 8192  # of normal values the unit is then known to 1.2 / sqrt(8192), 1.3 percent
QUARTILES = torch.tensor([0.25, 0.75], dtype=torch.float64)
NORMAL = 1.349  # interquartile range of a normal distribution, in standard deviations


@torch.no_grad()
def gain_unit(critics: Critics, batch: Batch) -> float:
    """Robust standard deviation, in the critics' units, of the values of the data's actions.

    Interquartile range over 1.349. The critics' own unit, the standard deviation of the advantages,
    is for the most part that of the few transitions at which an episode fails, where there are any:
    what is usual from step to step is a sixth to a third of it there and most of it elsewhere (our
    choice; benchmarks/TRIED.md has the measurements).

    Args:
        critics: The finished ensemble; the members' mean counts.
        batch: Transitions that they were trained on.
    """
    if len(batch.actions) == 0:
        return 0.0
    values = critics(batch.observations, batch.actions.unsqueeze(-2)).squeeze(-1).mean(0)
    low, high = values.double().quantile(QUARTILES.to(values.device))
    return float(high - low) / NORMAL
