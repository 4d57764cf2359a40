"""Selecting one candidate by its score, and the record of that decision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gem_policy.candidates import CandidateSet


@dataclass(frozen=True)
class Decision:
    """What was chosen, and from what.

    Attributes:
        action: The chosen action in environment units, inside the action space; NaN where not
            even the mode is a number.
        index: Its place among the candidates.
        scores: Score of every candidate; -inf marks candidates that must not be chosen.
        supported: False where no candidate had a finite score and the fall-back, candidate 0
            (the actor's mode), was returned.
        candidates: The candidate set, in normalized action units.
    """

    action: Float[Tensor, "*batch action"]
    index: Int[Tensor, "*batch"]
    scores: Float[Tensor, "*batch candidates"]
    supported: Bool[Tensor, "*batch"]
    candidates: CandidateSet


def usable_scores(
    candidates: CandidateSet, scores: Float[Tensor, "*batch candidates"]
) -> Float[Tensor, "*batch candidates"]:
    """Scores with -inf for every candidate that is not `usable`."""
    return torch.where(usable(candidates, scores), scores, -torch.inf)


def usable(
    candidates: CandidateSet, scores: Float[Tensor, "*batch candidates"]
) -> Bool[Tensor, "*batch candidates"]:
    """Which candidates may be chosen: those whose values, density and score are all finite."""
    # A sum is finite only if every term is (or overflows, which deserves the same treatment).
    return torch.isfinite(candidates.q.sum(0) + candidates.log_behavior + scores)


def select(
    scores: Float[Tensor, "*batch candidates"],
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "*batch"]:
    """Index of the chosen candidate: the first best, or a draw from softmax(score / temperature).

    Args:
        scores: -inf marks candidates that must not be chosen; where all are, 0 is returned.
        temperature: 0 takes the best one.
        generator: Source of the draw, on the scores' device; None for torch's global one.
    """
    if temperature == 0:
        return scores.argmax(-1)
    best = scores.amax(-1, keepdim=True)
    alive = torch.isfinite(best)
    # Shifted before dividing, and in float64: a tiny temperature must turn neither into inf - inf
    # nor, rounded to 0, into 0 / 0.
    shifted = (scores - torch.where(alive, best, 0.0)).double()
    logits = torch.where(alive, shifted / temperature, 0.0)
    weights = torch.softmax(logits, dim=-1).reshape(-1, scores.shape[-1])
    drawn = torch.multinomial(weights, 1, generator=generator).reshape(scores.shape[:-1])
    return torch.where(alive.squeeze(-1), drawn, 0)
