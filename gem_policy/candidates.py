"""Proposing actions: the actor's component means first, then draws from its mixture."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gem_policy.mixture import GaussianMixture


@dataclass(frozen=True)
class CandidateSet:
    """N actions per state with everything that a scoring rule may look at.

    Attributes:
        actions: In normalized action units, inside the box.
        component: Mixture component each action came from.
        q: Value of each action by each critic member, in scaled reward.
        log_behavior: Log density of each action under the behavior model, in nats.
    """

    actions: Float[Tensor, "*batch candidates action"]
    component: Int[Tensor, "*batch candidates"]
    q: Float[Tensor, "members *batch candidates"]
    log_behavior: Float[Tensor, "*batch candidates"]


@functools.lru_cache(maxsize=64)
def noise_table(
    count: int, action_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, " count"], Float[Tensor, "count action"]]:
    """Fixed low-discrepancy draws: one uniform and one normal vector per candidate.

    A scrambled Sobol sequence with a fixed seed (our choice): covers the distribution better than
    random draws, is the same for every state, and its first N rows do not depend on how many
    follow, so that a larger budget only ever adds candidates.
    """
    engine = torch.quasirandom.SobolEngine(action_size + 1, scramble=True, seed=0)
    points = engine.draw(count, dtype=torch.float64)
    # Away from 0 and 1, where the normal quantile is infinite.
    points = points.clamp(1e-6, 1 - 1e-6)
    normal = torch.special.ndtri(points[:, 1:])
    return points[:, 0].to(device, dtype), normal.to(device, dtype)


def propose(
    mixture: GaussianMixture,
    count: int,
    generator: torch.Generator | None = None,
    scale: float = 1.0,
) -> tuple[Float[Tensor, "*batch {count} action"], Int[Tensor, "*batch {count}"]]:
    """N candidate actions per state, clipped to the box, and the component of each.

    Without a generator the set is deterministic: the component means by falling weight, then a
    fixed low-discrepancy sample. The set of size N is a prefix of that of any N' > N, and a
    state's set does not depend on its batch. With a generator all N are fresh draws (no means).

    Args:
        mixture: The actor's mixture, in normalized action units.
        count: N.
        generator: Source of randomness on the mixture's device; None for the deterministic set.
        scale: Factor on the standard deviations.
    """
    order = mixture.order()
    if generator is None:
        means = min(count, order.shape[-1])
        draws = count - means
        uniform, normal = noise_table(
            max(draws, 1), mixture.mean.shape[-1], mixture.mean.device, mixture.mean.dtype
        )
        uniform, normal = uniform[:draws], normal[:draws]
    else:
        means, draws = 0, count
        shape = (*order.shape[:-1], draws)
        make = {"generator": generator, "device": order.device, "dtype": mixture.mean.dtype}
        uniform = torch.rand(shape, **make)
        normal = torch.randn((*shape, mixture.mean.shape[-1]), **make)
    component, actions = order[..., :means], None
    if draws:
        drawn = _components(mixture, order, uniform)
        component = torch.cat((component, drawn), dim=-1)
    mean, std = mixture.pick(component)
    if draws:
        spread = std[..., means:, :] * (normal * scale)
        actions = torch.cat((mean[..., :means, :], mean[..., means:, :] + spread), dim=-2)
    else:
        actions = mean
    return actions.clamp(-1, 1), component


def _components(
    mixture: GaussianMixture,
    order: Int[Tensor, "*batch components"],
    uniform: Float[Tensor, "*#batch draws"],
) -> Int[Tensor, "*batch draws"]:
    """Components whose share of the cumulative weights, heaviest first, holds each uniform."""
    weights = torch.gather(torch.softmax(mixture.logits, -1), -1, order)
    cumulative = weights.cumsum(-1)
    # Compared with all but the last edge: rounding can leave that one a hair below 1.
    place = (uniform.unsqueeze(-1) >= cumulative[..., None, :-1]).sum(-1)
    return torch.gather(order, -1, place)
