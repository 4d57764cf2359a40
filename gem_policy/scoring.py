"""Scoring rules: numbers about candidates in, one score per candidate out; no network in sight.

A rule is a frozen dataclass: printable, comparable, picklable. To add one, write it here, give it
a line in `RULES`, and it joins the parametrized properties of the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy.candidates import CandidateSet
from gem_policy.config import SelectionConfig

TIE = 1e-6  # std, relative to the size of the mean, below which candidates count as tied
BEYOND_KNEE = 0.1  # what counts of a standardized value's excess over the knee


@runtime_checkable
class ScoringRule(Protocol):
    """Anything that turns a candidate set into scores; higher is better."""

    def __call__(self, candidates: CandidateSet) -> Float[Tensor, "*batch candidates"]:
        """Score of every candidate, from this state's own candidates alone."""
        ...


def standardize(x: Float[Tensor, "*batch candidates"]) -> Float[Tensor, "*batch candidates"]:
    """Mean 0 and (population) std 1 within each state's candidates; all 0 where they tie.

    Non-finite entries stay as they are and do not count. In float64, where neither the square of
    a huge float32 overflows nor that of a denormal one vanishes.
    """
    if x.numel() == 0:  # torch warns of the variance of nothing
        return x
    wide = x.double()
    if x.device.type == "cpu":
        # One kernel for all of it; where a number is not finite, neither is the mean.
        z, mean, inverse = torch.native_layer_norm(wide, wide.shape[-1:], None, None, 0.0)
        if math.isfinite(mean.sum().item()):
            return torch.where((mean * inverse).abs() < 1 / TIE, z, 0.0).to(x.dtype)
    # On a GPU the masks cost less than asking whether they are needed.
    finite = torch.isfinite(wide)
    count = finite.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(finite, wide, 0.0).sum(-1, keepdim=True) / count
    centered = torch.where(finite, wide - mean, 0.0)
    inverse = (centered.square().sum(-1, keepdim=True) / count).rsqrt()
    z = torch.where((mean * inverse).abs() < 1 / TIE, centered * inverse, 0.0)
    return torch.where(finite, z.to(x.dtype), x)


@dataclass(frozen=True)
class LowerBound:
    """``mean_E Q - kappa * std_E Q`` with the population std, so that E = 1 has no penalty.

    Source: the paper's abstract; the population std is our choice.
    """

    kappa: float = 1.0

    def __call__(self, candidates: CandidateSet) -> Float[Tensor, "*batch candidates"]:
        """The lower confidence bound of every candidate."""
        return lower_bound(candidates.q, self.kappa)


@dataclass(frozen=True)
class PairedBound:
    """Lower bound of each member's difference to its own value of candidate 0 (our choice).

    What a member gets wrong about the whole state cancels; a candidate replaces the first one,
    the actor's mode, only where the members agree that it is better.
    """

    kappa: float = 1.0

    def __call__(self, candidates: CandidateSet) -> Float[Tensor, "*batch candidates"]:
        """The lower confidence bound of every candidate's gain over candidate 0."""
        q = candidates.q
        # Candidate 0, or where its numbers are broken the first whose are not.
        first = torch.isfinite(q).all(0).to(torch.uint8).argmax(-1, keepdim=True)
        reference = q.gather(-1, first.expand(q.shape[0], *first.shape))
        return lower_bound(q - reference, self.kappa)


@dataclass(frozen=True)
class Standardized:
    """Another rule's scores, standardized within the state's candidates (our choice).

    Above the knee only a tenth of the excess counts: order is kept, but a value that is better
    than those of most candidates is no longer worth much support.
    """

    base: ScoringRule
    knee: float | None = None

    def __call__(self, candidates: CandidateSet) -> Float[Tensor, "*batch candidates"]:
        """Scores with mean 0 and std 1 per state, up to the knee."""
        z = standardize(self.base(candidates))
        if self.knee is None:
            return z
        return torch.minimum(z, self.knee + BEYOND_KNEE * (z - self.knee))


@dataclass(frozen=True)
class BehaviorNormalized:
    """``base + weight * z``, z the standardized behavior log-density (the paper's abstract)."""

    base: ScoringRule
    weight: float = 1.0

    def __call__(self, candidates: CandidateSet) -> Float[Tensor, "*batch candidates"]:
        """Value and support in one score."""
        return self.base(candidates) + self.weight * standardize(candidates.log_behavior)


def lower_bound(
    q: Float[Tensor, "members *batch candidates"], kappa: float
) -> Float[Tensor, "*batch candidates"]:
    """``mean - kappa * std`` over the members, exactly the mean where kappa = 0 or E = 1."""
    mean = q.mean(0)
    if kappa == 0 or q.shape[0] == 1 or q.numel() == 0:  # torch warns of the std of nothing
        return mean
    return mean - kappa * q.std(0, correction=0)


RULES: dict[str, type[ScoringRule]] = {
    "lower": LowerBound,
    "paired": PairedBound,
    "standardized": Standardized,
    "behavior_normalized": BehaviorNormalized,
}


def rule_of(config: SelectionConfig) -> ScoringRule:
    """The scoring rule that selection settings describe."""
    base: ScoringRule = PairedBound(config.kappa)
    if config.bound == "lower":
        base = LowerBound(config.kappa)
    if config.value_scale == "standardized":
        base = Standardized(base, config.value_knee)
    return BehaviorNormalized(base, config.support_weight) if config.support_weight else base
