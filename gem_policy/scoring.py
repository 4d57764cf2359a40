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

TIE = 1e-6  # std, relative to the root mean square, below which candidates count as tied


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
    wide = x.double()
    if x.device.type == "cpu" and math.isfinite(wide.sum().item()):
        variance, mean = torch.var_mean(wide, dim=-1, correction=0, keepdim=True)
        return _scaled(wide - mean, variance, mean).to(x.dtype)
    # On a GPU the masks cost less than asking whether they are needed.
    finite = torch.isfinite(wide)
    count = finite.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(finite, wide, 0.0).sum(-1, keepdim=True) / count
    centered = torch.where(finite, wide - mean, 0.0)
    variance = centered.square().sum(-1, keepdim=True) / count
    return torch.where(finite, _scaled(centered, variance, mean).to(x.dtype), x)


def _scaled(
    centered: Float[Tensor, "*batch candidates"],
    variance: Float[Tensor, "*batch 1"],
    mean: Float[Tensor, "*batch 1"],
) -> Float[Tensor, "*batch candidates"]:
    """Deviations divided by their std, or zeros where that is nothing but rounding."""
    floor = (TIE * TIE) * torch.addcmul(variance, mean, mean)
    inverse = torch.where(variance > floor, variance.rsqrt(), 0.0)
    return centered * inverse


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
        return lower_bound(candidates.q - candidates.q[..., :1], self.kappa)


@dataclass(frozen=True)
class Standardized:
    """Another rule's scores, standardized within the state's candidates (our choice)."""

    base: ScoringRule

    def __call__(self, candidates: CandidateSet) -> Float[Tensor, "*batch candidates"]:
        """Scores with mean 0 and std 1 per state."""
        return standardize(self.base(candidates))


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
        base = Standardized(base)
    return BehaviorNormalized(base, config.support_weight) if config.support_weight else base
