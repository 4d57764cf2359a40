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


def noise_table(
    count: int, means: int, action_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, " {count-means}"], Float[Tensor, "{count} action"]]:
    """Fixed low-discrepancy draws: a uniform per drawn candidate, a normal vector per candidate.

    A scrambled Sobol sequence with a fixed seed (our choice): covers the distribution better than
    random draws, is the same for every state, and its first N rows do not depend on how many
    follow, so that a larger budget only ever adds candidates. The first ``means`` candidates are
    component means: their normal vectors are zero.
    """
    return _kept_noise_table(count, means, action_size, device, dtype)


@functools.cache  # all of them: recorded decisions read them where they lie
@torch.inference_mode(False)  # kept for all callers, those with gradients among them
def _kept_noise_table(
    count: int, means: int, action_size: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    engine = torch.quasirandom.SobolEngine(  # type: ignore[no-untyped-call]
        action_size + 1, scramble=True, seed=0
    )
    points = engine.draw(max(count - means, 1), dtype=torch.float64)[: count - means]
    # Away from 0 and 1, where the normal quantile is infinite.
    points = points.clamp(1e-6, 1 - 1e-6)
    normal = torch.special.ndtri(points[:, 1:])
    normal = torch.cat((normal.new_zeros(means, action_size), normal))
    return points[:, 0].contiguous().to(device, dtype), normal.to(device, dtype)


def propose(
    mixture: GaussianMixture,
    count: int,
    generator: torch.Generator | None = None,
    scale: float = 1.0,
    all_modes: bool = True,
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
        all_modes: Whether every component's mean is in the deterministic set, or only that of the
            heaviest one, the actor's mode.
    """
    device, dtype = mixture.mean.device, mixture.mean.dtype
    size, components = mixture.mean.shape[-1], mixture.mean.shape[-2]
    if generator is None:
        means = min(count, components if all_modes else 1)
        uniform, normal = noise_table(count, means, size, device, dtype)
        component = mixture.heaviest() if means == 1 else mixture.order()[..., :means]
        if count > means:
            component = torch.cat((component, _components(mixture, uniform)), dim=-1)
    else:
        shape = (*mixture.logits.shape[:-1], count)
        uniform = torch.rand(shape, generator=generator, device=device, dtype=dtype)
        normal = torch.randn((*shape, size), generator=generator, device=device, dtype=dtype)
        component = _components(mixture, uniform)
    mean, std = mixture.pick(component)
    return torch.addcmul(mean, std, normal, value=scale).clamp_(-1, 1), component


def _components(
    mixture: GaussianMixture, uniform: Float[Tensor, "*#batch draws"]
) -> Int[Tensor, "*batch draws"]:
    """Components whose share of the cumulative weights holds each uniform number."""
    cumulative = torch.softmax(mixture.logits, -1).cumsum(-1)
    # All but the last edge: rounding can leave that one a hair below 1.
    edges = cumulative[..., :-1].contiguous()
    wanted = uniform.expand(*edges.shape[:-1], uniform.shape[-1]).contiguous()
    return torch.searchsorted(edges, wanted, right=True)
