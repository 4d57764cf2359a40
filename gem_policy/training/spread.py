"""How much the critics disagree off the data, against on it: what pessimism has to work with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch

from gem_policy.critics import Critics
from gem_policy.errors import TrainingWarning
from gem_policy.training.replay import Batch


@torch.no_grad()
def critic_spread(critics: Critics, batch: Batch, seed: int) -> dict[str, float | None]:
    """Standard deviation over the members, at the data's actions and at others.

    Off the data means: at the data's own actions, dealt out to other states at random. Actions that
    are uniform in the box do not compare: where the data's lie at its border, as in mazes, they are
    a third shorter, a shorter action changes less, and so its value is less in doubt.

    Args:
        critics: The finished ensemble.
        batch: Held-out transitions.
        seed: Of the dealing and of the uniform actions.

    Returns:
        ``data``, ``dealt`` and ``uniform``: mean over states of the members' standard deviation
        (divided by E), in units of the critics; ``ratio``: dealt / data, None if the members agree
        to the bit at all data (one member does).
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(batch.actions.shape, generator=generator).to(batch.actions) * 2 - 1
    order = torch.randperm(len(uniform), generator=generator).to(uniform.device)
    actions = torch.stack([batch.actions, batch.actions[order], uniform], dim=-2)
    spread = critics(batch.observations, actions).std(0, correction=0).mean(0)
    data, dealt, anywhere = (float(x) for x in spread)
    ratio = dealt / data if data > 0 else None
    return {"data": data, "dealt": dealt, "uniform": anywhere, "ratio": ratio}


def spread_metrics(spread: Mapping[str, float | None]) -> dict[str, float]:
    """What `critic_spread` found as metrics, the parts that there are."""
    return {f"critic/spread_{key}": x for key, x in spread.items() if x is not None}


def warn_of_small_spread(spread: dict[str, float | None]) -> None:
    """Give a `TrainingWarning` if the critics agree better off the data than on it."""
    ratio = spread["ratio"]
    if ratio is not None and ratio < 1:
        warnings.warn(
            "The critics disagree less at the actions of other states than at the data's (ratio "
            f"{ratio:.2f} of their standard deviations): their lower bound will not hold back from "
            "actions that the data do not have. Rely on support_weight, or train with more critics "
            "or more critic_updates; `critic_spread` in the checkpoint's provenance has the "
            "numbers.",
            TrainingWarning,
            stacklevel=2,
        )
