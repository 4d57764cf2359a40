"""Scoring rules: numbers about candidates in, one score per candidate out; no network in sight.

A rule is a frozen dataclass: printable, comparable, picklable. To add one, write it here, give it
a line in `RULES`, and it joins the parametrized properties of the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gem_policy.candidates import CandidateSet
from gem_policy.config import SelectionConfig
from gem_policy.selection import usable

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
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # One kernel for all of it; where a number is not finite, neither is the mean.
        z, mean, inverse = torch.native_layer_norm(wide, wide.shape[-1:], None, None, 0.0)
        if math.isfinite(mean.sum().item()):
            return torch.where((mean * inverse).abs() < 1 / TIE, z, 0.0).to(x.dtype)
    # On a GPU, and compiled, the masks cost less than asking whether they are needed.
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

    What a member gets wrong about the whole state cancels, and what is left is how well the members
    agree on which of the two is better.
    """

    kappa: float = 1.0

    def __call__(self, candidates: CandidateSet) -> Float[Tensor, "*batch candidates"]:
        """The lower confidence bound of every candidate's gain over candidate 0."""
        return lower_bound(gains(candidates.q, first_finite(candidates.q)), self.kappa)


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


@dataclass(frozen=True)
class Improving:
    """Another rule's scores, with candidates that may not replace candidate 0 behind it.

    A candidate may only where the lower bound of its gain over candidate 0 is above 0 and its mean
    gain above ``least``, and above ``per_nat`` more for every nat of the behavior model's
    log-density that it gives up against candidate 0 (our choice): a best score alone can be that of
    a candidate which is merely well supported, members that share an error agree on gains which are
    none, and the best of many is the more overrated the fewer data are around it. Nor may any of
    more than ``deciding`` candidates where none of the first so many may, with a better score than
    candidate 0: the best of many scores grows with their number, though no action gets better.
    Among themselves the others keep their order. For sets whose candidate 0 is the actor's mode:
    `decide` leaves it out where all candidates are fresh draws.
    """

    base: ScoringRule
    kappa: float = 2.0
    least: float = 0.0
    per_nat: float = 0.0
    deciding: int | None = None

    def __call__(self, candidates: CandidateSet) -> Float[Tensor, "*batch candidates"]:
        """Scores; candidate 0's own, and those of better ones, as they are."""
        scores, first = self.base(candidates), first_finite(candidates.q)
        gain = gains(candidates.q, first)
        allowed = lower_bound(gain, self.kappa) > 0
        if self.least or self.per_nat:
            allowed &= gain.mean(0) > self.least + self._price(candidates.log_behavior, first)
        finite, own = torch.isfinite(scores), scores.gather(-1, first)
        if self.deciding is not None and self.deciding < scores.shape[-1]:
            fine = usable(candidates, scores)
            better = (allowed & fine & (scores > own))[..., : self.deciding]
            # Where candidate 0 may not be chosen itself, nobody has to be better.
            allowed &= better.any(-1, keepdim=True) | ~fine.gather(-1, first)
        allowed = allowed.scatter(-1, first, True)
        best = torch.where(finite, scores, -torch.inf).amax(-1, keepdim=True)
        # Where candidate 0 has no score, the others come behind the least of those that may.
        least = torch.where(finite & allowed, scores, torch.inf).amin(-1, keepdim=True)
        own = torch.where(torch.isfinite(own), own, torch.minimum(least, best))
        # The best of them all would come 1 behind candidate 0; rounding must not lift it over it.
        behind = torch.minimum(scores - ((best - own).clamp(min=0) + 1), own)
        return torch.where(allowed, scores, behind)

    def _price(
        self, log_behavior: Float[Tensor, "*batch candidates"], first: Int[Tensor, "*batch 1"]
    ) -> Float[Tensor, "*batch candidates"] | float:
        """What candidates must gain for the log-density that they give up; 0 where it is none."""
        if not self.per_nat:
            return 0.0
        lost = (log_behavior.gather(-1, first) - log_behavior).clamp(min=0)
        # Where one of the two is not a number nobody knows what is given up. The price of nothing
        # is nothing, of a price beyond float32 too.
        return torch.where(lost > 0, lost * self.per_nat, 0.0)


def gains(
    q: Float[Tensor, "members *batch candidates"], first: Int[Tensor, "*batch 1"]
) -> Float[Tensor, "members *batch candidates"]:
    """Each member's differences to its own value of the candidate at ``first``."""
    return q - q.gather(-1, first.expand(q.shape[0], *first.shape))


def first_finite(q: Float[Tensor, "members *batch candidates"]) -> Int[Tensor, "*batch 1"]:
    """Candidate 0, or where its values are broken the first whose are not."""
    return torch.isfinite(q).all(0).to(torch.uint8).argmax(-1, keepdim=True)


def lower_bound(
    q: Float[Tensor, "members *batch candidates"], kappa: float
) -> Float[Tensor, "*batch candidates"]:
    """``mean - kappa * std`` over the members; of E = 1 the mean."""
    mean = q.mean(0)
    if kappa == 0 or q.shape[0] == 1 or q.numel() == 0:  # torch warns of the std of nothing
        return mean
    return mean - kappa * q.std(0, correction=0)


RULES: dict[str, type[ScoringRule]] = {
    "lower": LowerBound,
    "paired": PairedBound,
    "standardized": Standardized,
    "behavior_normalized": BehaviorNormalized,
    "improving": Improving,
}


def rule_of(config: SelectionConfig, gain_unit: float) -> ScoringRule:
    """The scoring rule that selection settings describe.

    Args:
        config: The settings.
        gain_unit: What ``least_gain`` and ``gain_per_nat`` count in: a policy's
            `PolicyConfig.gain_unit`.
    """
    base: ScoringRule = PairedBound(config.kappa)
    if config.bound == "lower":
        base = LowerBound(config.kappa)
    if config.value_scale == "standardized":
        base = Standardized(base, config.value_knee)
    rule = BehaviorNormalized(base, config.support_weight) if config.support_weight else base
    if config.gain_kappa is None:
        return rule
    least, per_nat = asked_gains(config, gain_unit)
    return Improving(rule, config.gain_kappa, least, per_nat, config.deciding_candidates)


def asked_gains(config: SelectionConfig, gain_unit: float) -> tuple[float, float]:
    """``least_gain``, and ``gain_per_nat`` times ``support_weight``, in the critics' unit."""
    per_nat = config.gain_per_nat * config.support_weight
    return config.least_gain * gain_unit, per_nat * gain_unit
