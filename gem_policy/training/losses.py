"""The losses of GEM's three models: pure functions of tensors, returning named records.

Members E stay apart throughout: every loss is a *sum* over members of means over the batch, so a
member's gradient is what it would be alone. What a record says besides the loss is computed when
it is asked for: few updates are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy.compiled import TORCH
from gem_policy.mixture import HALF_LOG_TWO_PI, GaussianMixture


@dataclass(frozen=True)
class ExpectileLoss:
    """Loss of the state values and what to watch of it.

    Attributes:
        loss: To minimize.
        values: Without gradient.
        errors: Targets less values, without gradient.
    """

    loss: Float[Tensor, ""]
    values: Float[Tensor, "members batch"]
    errors: Float[Tensor, "members batch"]

    @property
    def value(self) -> Float[Tensor, ""]:
        """Mean value."""
        return self.values.mean()

    @property
    def advantage(self) -> Float[Tensor, ""]:
        """Mean advantage."""
        return self.errors.mean()


def expectile_loss(
    q: Float[Tensor, "members batch"], value: Float[Tensor, "members batch"], expectile: float
) -> ExpectileLoss:
    """Asymmetric least squares ``|tau - 1(q < v)| (q - v)^2`` (IQL, arXiv 2110.06169, eq. 5).

    ``q`` carries no gradient; member e's value is fitted to member e's own target critic.
    """
    error = q - value
    weight = torch.where(error < 0, 1 - expectile, expectile)
    loss = (weight * error.square()).sum() / error.shape[-1]
    return ExpectileLoss(loss, value.detach(), error.detach())


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
    loss = (q - target).square().sum() / q.shape[-1]
    detached = q.detach()
    return CriticLoss(loss, detached.mean(), detached.std(0, correction=0).mean())


@dataclass(frozen=True)
class MixtureLoss:
    """Loss of a mixture model and the life signs of its components.

    Attributes:
        loss: To minimize.
        mixture: Of the batch's states, without gradient.
        actions: Of the batch.
        weights: Of the batch.
        floor: Smallest responsibility.
    """

    loss: Float[Tensor, ""]
    mixture: GaussianMixture
    actions: Float[Tensor, "batch action"]
    weights: Float[Tensor, " batch"]
    floor: float

    @property
    def log_prob(self) -> Float[Tensor, ""]:
        """Mean log-likelihood, in nats, without the weights."""
        return self.mixture.log_prob(self.actions.unsqueeze(-2)).mean()

    @property
    def weight(self) -> Float[Tensor, ""]:
        """Mean weight."""
        return self.weights.mean()

    @property
    def usage(self) -> Float[Tensor, " components"]:
        """Share of the weights that each component answers for."""
        joint = self.mixture.component_log_prob(self.actions.unsqueeze(-2)).squeeze(-2)
        responsibility = _responsibilities(joint, self.floor)
        return (self.weights.unsqueeze(-1) * responsibility).sum(0) / self.weights.sum()


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
    parts = mixture.logits, mixture.mean, mixture.log_std
    loss, *_ = _GuidedEM.apply(*parts, actions, weights, responsibility_floor)  # type: ignore[no-untyped-call]
    detached = GaussianMixture(*(part.detach() for part in parts))
    return MixtureLoss(loss, detached, actions, weights, responsibility_floor)


def _responsibilities(
    joint: Float[Tensor, "*batch components"], floor: float
) -> Float[Tensor, "*batch components"]:
    """The E-step, from the logarithms of weight times density."""
    responsibility = torch.softmax(joint, dim=-1)
    if floor > 0:
        responsibility = responsibility.clamp(min=floor)
        responsibility = responsibility / responsibility.sum(-1, keepdim=True)
    return responsibility


class _GuidedEM(torch.autograd.Function):
    """The loss with its gradient written down: recorded call by call it takes four times as many.

    With ``u_k = w r_k / B`` and ``z = (a - mu_k) / sigma_k``: ``alpha_k sum_j u_j - u_k`` for the
    logits, ``- u_k z / sigma_k`` for the means, ``u_k (1 - z^2)`` for the log standard deviations.
    They are made together with the loss, whose responsibilities and z they share, and are not to be
    differentiated again.
    """

    generate_vmap_rule = True  # several seeds are stacked by vmap

    @staticmethod
    def forward(
        logits: Tensor,
        mean: Tensor,
        log_std: Tensor,
        actions: Tensor,
        weights: Tensor,
        floor: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inverse = torch.exp(-log_std)
        z = (actions.unsqueeze(-2) - mean) * inverse
        log_weights = torch.log_softmax(logits, -1)
        constant = log_weights - log_std.sum(-1) - HALF_LOG_TWO_PI * actions.shape[-1]
        joint = torch.sub(constant, z.square().sum(-1), alpha=0.5)
        # A constant also where torch's compiler goes backward through these lines, as it does for
        # several seeds, instead of taking the gradient below.
        responsibility = _responsibilities(joint, floor).detach()
        share = weights / weights.shape[-1]
        pull = share.unsqueeze(-1) * responsibility
        loss = -(pull * joint).sum()
        wide = pull.unsqueeze(-1)
        pulled = wide * z
        # The responsibilities of a transition sum to 1, and so its pulls to its share.
        of_logits = log_weights.exp() * share.unsqueeze(-1) - pull
        of_mean = -pulled * inverse
        of_log_std = torch.addcmul(wide, pulled, z, value=-1)
        return loss, of_logits, of_mean, of_log_std

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])
        # Torch 2.4 takes each of them for a tensor under vmap, also where it is none; 2.7 does not.
        ctx.set_materialize_grads(TORCH < (2, 7))
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Any, *_: Any) -> Any:
        return *(grad * own for own in ctx.saved_tensors), None, None, None
