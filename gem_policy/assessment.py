"""What data and critics say about given actions, whoever chose them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gem_policy.candidates import CandidateSet
from gem_policy.scoring import lower_bound


@dataclass(frozen=True)
class Assessment:
    """Numbers about given actions, `candidates` of them per state.

    Attributes:
        log_beta: Log density under the behavior model, in nats.
        percentile: Percent of the data's own (held-out) actions that are less likely.
        q_mean: Mean of the critics, in scaled reward.
        q_std: Their (population) standard deviation.
        lcb: ``q_mean - kappa * q_std``.
        component: The actor's mixture component that is most responsible for the action; -1
            where observation or action is not finite, and every number above is NaN there.
    """

    log_beta: Float[Tensor, "*batch candidates"]
    percentile: Float[Tensor, "*batch candidates"]
    q_mean: Float[Tensor, "*batch candidates"]
    q_std: Float[Tensor, "*batch candidates"]
    lcb: Float[Tensor, "*batch candidates"]
    component: Int[Tensor, "*batch candidates"]

    @classmethod
    def of(
        cls,
        candidates: CandidateSet,
        percentile: Float[Tensor, "*batch candidates"],
        kappa: float,
    ) -> Assessment:
        """The assessment of evaluated actions."""
        q, density = candidates.q, candidates.log_behavior
        # An infinite action has density 0, log beta = -inf, but no value that means anything.
        fine = torch.isfinite(candidates.actions).all(-1) & ~density.isnan()

        def known(number: Tensor) -> Tensor:
            return torch.where(fine, number, torch.nan)

        return cls(
            log_beta=known(density),
            percentile=known(percentile),
            q_mean=known(q.mean(0)),
            q_std=known(q.std(0, correction=0)),
            lcb=known(lower_bound(q, kappa)),
            component=torch.where(fine, candidates.component, -1),
        )
