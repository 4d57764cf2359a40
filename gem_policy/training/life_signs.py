"""Signs of life of a mixture's components: how far apart their means are, and whether one died.

A component that no action of the data belongs to gets no gradient and stays as it is; components
whose means fall together are one. The mixture goes on with fewer modes than it has parameters for,
and nothing in the loss shows it.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy.errors import TrainingWarning
from gem_policy.mixture import GaussianMixture
from gem_policy.networks import MixturePolicy
from gem_policy.training.losses import guided_em_loss
from gem_policy.training.replay import Batch

DEAD = 1 / 20  # of an equal share: a component that is used less than that is as good as dead
OVERLAP = 1.0  # standard deviations between two means on average, below which the modes are one
ROWS = 8192  # transitions that are looked at

_ADVICE = {
    "behavior": "Take fewer behavior_components, or let it learn for more behavior_updates.",
    "actor": (
        "Take fewer actor_components, or a larger weight_temperature, so that more of the data "
        "count. A responsibility_floor of 0.01 keeps components alive, but blurs the others."
    ),
}


@torch.no_grad()
def component_distance(mixture: GaussianMixture) -> Float[Tensor, ""]:
    """Mean distance between the means of two components, in standard deviations.

    ``sqrt(mean_A (mu_k - mu_l)^2 / ((sigma_k^2 + sigma_l^2) / 2))``: root mean square over action
    dimensions, averaged over states and over the K (K - 1) / 2 pairs without weights, so that a
    rare component counts as much as a common one. Below 1 the components overlap. Our choice.

    Raises:
        ValueError: There is one component only, and so no pair.
    """
    components = mixture.mean.shape[-2]
    if components < 2:
        raise ValueError("A mixture of one component has no pair to measure.")
    pairs = torch.combinations(torch.arange(components, device=mixture.mean.device))
    first, second = pairs.unbind(-1)
    variance = (2 * mixture.log_std).exp()
    offset = mixture.mean[..., first, :] - mixture.mean[..., second, :]
    pooled = (variance[..., first, :] + variance[..., second, :]) / 2
    return (offset.square() / pooled).mean(-1).sqrt().mean()


@torch.no_grad()
def component_usage(model: MixturePolicy, batch: Batch) -> Float[Tensor, " components"]:
    """Share of the (weighted) actions that belongs to each component, by its posterior.

    Without the floor that training may put under the responsibilities: with it, nothing looks dead.
    """
    return guided_em_loss(model(batch.observations), batch.actions, batch.weights).usage


def warn_of_lost_components(
    phase: str, model: MixturePolicy, batch: Batch, owner: str = ""
) -> None:
    """Give a `TrainingWarning` for each way in which a finished mixture lost components.

    Args:
        phase: ``behavior`` or ``actor``; decides what the advice is.
        model: The mixture at the end of its phase.
        batch: Training transitions with their weights.
        owner: Whose mixture it is, where there are several: ``"seed 3's "``.

    Warns:
        TrainingWarning: A component is (almost) unused, or the means have fallen together.
    """
    warn_of_dead_components(phase, component_usage(model, batch), owner)
    if model.components > 1:
        with torch.no_grad():
            warn_of_overlap(phase, float(component_distance(model(batch.observations))), owner)


def warn_of_dead_components(
    phase: str, usage: Float[Tensor, " components"], owner: str = ""
) -> None:
    """Give a `TrainingWarning` if a component's share is below a twentieth of an equal one.

    Args:
        phase: As in `warn_of_lost_components`.
        usage: What `component_usage` found.
        owner: As in `warn_of_lost_components`.
    """
    components = usage.shape[0]
    limit = DEAD / components
    dead = {k: share for k, share in enumerate(usage.tolist()) if not share >= limit}
    if dead:
        told = ", ".join(f"component {k}: {share:.2g}" for k, share in dead.items())
        warnings.warn(
            f"{len(dead)} of the {components} components of {owner or 'the '}{phase} model are "
            f"(almost) unused at the end of the {phase} phase: share of the data {told}, below "
            f"{limit:.2g}. {_ADVICE[phase]}",
            TrainingWarning,
            stacklevel=2,
        )


def warn_of_overlap(phase: str, distance: float, owner: str = "") -> None:
    """Give a `TrainingWarning` if the means are less than a standard deviation apart.

    Args:
        phase: As in `warn_of_lost_components`.
        distance: What `component_distance` found.
        owner: As in `warn_of_lost_components`.
    """
    if not distance >= OVERLAP:
        warnings.warn(
            f"The components of {owner or 'the '}{phase} model overlap at the end of the {phase} "
            f"phase: two of their means are {distance:.2g} standard deviations apart on average, "
            f"below {OVERLAP:g}, so they are hardly more than one. If the data have several modes, "
            f"let it learn for more {phase}_updates; if not, take fewer {phase}_components.",
            TrainingWarning,
            stacklevel=2,
        )
