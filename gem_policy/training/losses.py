"""The losses of GEM's three models: pure functions of tensors, returning named records.

Members E stay apart throughout: every loss is a *sum* over members of means over the batch, so a
member's gradient is what it would be alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy.mixture import GaussianMixture


@dataclass(frozen=True)
class ExpectileLoss:
    """Loss of the state values and what to watch of it."""

    loss: Float[Tensor, ""]
    value: Float[Tensor, ""]
    advantage: Float[Tensor, ""]


def expectile_loss(
    q: Float[Tensor, "members batch"], value: Float[Tensor, "members batch"], expectile: float
) -> ExpectileLoss:
    """Asymmetric least squares ``|tau - 1(q < v)| (q - v)^2`` (IQL, arXiv 2110.06169, eq. 5).

    ``q`` carries no gradient; member e's value is fitted to member e's own target critic.
    """
    error = q - value
    weight = torch.where(error < 0, 1 - expectile, expectile)
    loss = (weight * error.square()).mean(-1).sum()
    return ExpectileLoss(loss, value.detach().mean(), error.detach().mean())


@dataclass(frozen=True)
class CriticLoss:
    """Loss of the critics and what to watch of it."""

    loss: Float[Tensor, ""]
    q: Float[Tensor, ""]
    spread: Float[Tensor, ""]


def critic_loss(
    q: Float[Tensor, "members batch"],
    rewards: Float[Tensor, " batch"],
    continues: Float[Tensor, " batch"],
    next_value: Float[Tensor, "members batch"],
    discount: float,
) -> CriticLoss:
    """Squared temporal-difference error; member e bootstraps from its own V_e (MSG's rule).

    Args:
        q: Values of the dataset's actions.
        rewards: Scaled rewards.
        continues: 0 where the task terminated, else 1. A time limit is not a termination.
        next_value: V_e of the next state, without gradient.
        discount: gamma.
    """
    target = rewards + discount * continues * next_value
    loss = (q - target).square().mean(-1).sum()
    detached = q.detach()
    return CriticLoss(loss, detached.mean(), detached.std(0, correction=0).mean())


@dataclass(frozen=True)
class MixtureLoss:
    """Loss of a mixture model and the life signs of its components."""

    loss: Float[Tensor, ""]
    log_prob: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    usage: Float[Tensor, " components"]


def advantage_weights(
    advantage: Float[Tensor, " batch"], temperature: float, weight_max: float
) -> Float[Tensor, " batch"]:
    """``min(exp(A / T), w_max)`` (AWR, arXiv 1910.00177; the clip as in IQL)."""
    ceiling = torch.log(torch.tensor(weight_max, dtype=advantage.dtype))
    return torch.exp((advantage / temperature).clamp(max=float(ceiling)))


def guided_em_loss(
    mixture: GaussianMixture,
    actions: Float[Tensor, "batch action"],
    weights: Float[Tensor, " batch"],
    responsibility_floor: float = 0.0,
) -> MixtureLoss:
    """One guided EM step: responsibilities without gradient, then weighted log-likelihood.

    E-step: ``r_k`` proportional to ``alpha_k N(a; mu_k, Sigma_k)``, floored and renormalized.
    M-step: ``- w sum_k r_k [log alpha_k + log N(a; mu_k, Sigma_k)]`` (SPEC of the method: the
    paper's abstract; floor and weights are our choices). With unit weights and no floor its
    gradient is that of the mixture's log-likelihood, which is how the behavior model is trained.
    """
    joint = mixture.component_log_prob(actions.unsqueeze(-2)).squeeze(-2)
    detached = joint.detach()
    responsibility = torch.softmax(detached, dim=-1)
    if responsibility_floor > 0:
        responsibility = responsibility.clamp(min=responsibility_floor)
        responsibility = responsibility / responsibility.sum(-1, keepdim=True)
    loss = -(weights * (responsibility * joint).sum(-1)).mean()
    usage = (weights.unsqueeze(-1) * responsibility).sum(0) / weights.sum()
    return MixtureLoss(loss, torch.logsumexp(detached, -1).mean(), weights.mean(), usage)
