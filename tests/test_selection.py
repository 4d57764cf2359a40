"""Selecting: what is chosen, what never is, and what the draw is worth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    MODERATE,
    arrays,
    batches,
    candidate_set,
    candidate_sets,
    filled_batches,
    seeds,
    selections,
)

from gem_policy.candidates import CandidateSet
from gem_policy.config import SelectionConfig
from gem_policy.scoring import LowerBound, rule_of
from gem_policy.selection import select, usable_scores

scores_of_any_batch = filled_batches.flatmap(lambda b: arrays((*b, 6), ("ordinary", "ties")))


def decide(candidates: CandidateSet, selection: SelectionConfig) -> tuple[Any, Any]:
    scores = usable_scores(candidates, rule_of(selection, 1.0)(candidates))
    return select(scores), scores


@given(batches.flatmap(lambda b: arrays((*b, 6), ("ordinary", "ties"))))
def test_the_first_best_is_chosen(x: np.ndarray) -> None:
    scores = torch.from_numpy(x)
    index = select(scores)
    assert index.shape == scores.shape[:-1]
    for place in reference.indices(*index.shape):
        assert int(index[place]) == reference.select(x[place].tolist())


@given(scores_of_any_batch, st.permutations(range(6)))
def test_the_choice_follows_a_permutation_of_the_candidates(
    x: np.ndarray, order: list[int]
) -> None:
    scores = torch.from_numpy(x)
    straight = scores.gather(-1, select(scores).unsqueeze(-1))
    turned = scores[..., order]
    assert torch.equal(turned.gather(-1, select(turned).unsqueeze(-1)), straight)
    distinct = torch.tensor([0.5, -1.0, 2.0, 1.0, -3.0, 0.0])
    assert order[int(select(distinct[order]))] == 2


@given(candidate_sets(), selections)
def test_what_is_not_finite_is_never_chosen_while_something_finite_is_there(
    candidates: CandidateSet, selection: SelectionConfig
) -> None:
    for temperature, generator in ((0.0, None), (0.5, torch.Generator().manual_seed(0))):
        _, scores = decide(candidates, selection)
        index = select(scores, temperature, generator)
        for place in reference.indices(*index.shape):
            chosen, row = int(index[place]), (slice(None), *place)
            fine = torch.isfinite(candidates.q[row]).all(0)
            fine &= torch.isfinite(candidates.log_behavior[place])
            usable = torch.isfinite(scores[place])
            assert not (usable & ~fine).any()
            if usable.any():
                assert bool(usable[chosen])
            else:
                assert chosen == 0


@given(candidate_sets(regimes=("ordinary", "broken")))
def test_whatever_the_rule_looks_at_values_and_densities_must_be_finite(
    candidates: CandidateSet,
) -> None:
    scores = usable_scores(candidates, torch.zeros_like(candidates.log_behavior))
    fine = torch.isfinite(candidates.q).all(0) & torch.isfinite(candidates.log_behavior)
    assert torch.equal(torch.isfinite(scores), fine)


@given(candidate_sets(regimes=(*MODERATE, "denormal", "broken")), selections)
def test_whatever_is_finite_and_not_huge_can_be_chosen(
    candidates: CandidateSet, selection: SelectionConfig
) -> None:
    _, scores = decide(candidates, selection)
    fine = torch.isfinite(candidates.q).all(0) & torch.isfinite(candidates.log_behavior)
    assert torch.equal(torch.isfinite(scores), fine)
    assert torch.equal(scores == -torch.inf, ~fine)


@given(
    st.integers(1, 5).flatmap(lambda e: arrays((e, 4, 12), MODERATE)),
    arrays((4, 12), MODERATE),
    st.floats(0, 10),
    st.integers(1, 11),
)
def test_the_best_score_never_falls_as_candidates_are_added_under_a_fixed_rule(
    q: np.ndarray, density: np.ndarray, kappa: float, count: int
) -> None:
    rule = LowerBound(kappa)
    few, more = candidate_set(q[..., :count], density[..., :count]), candidate_set(q, density)
    best_of_few = usable_scores(few, rule(few)).amax(-1)
    best_of_more = usable_scores(more, rule(more)).amax(-1)
    tolerance = 1e-4 * (1 + kappa) * float(np.abs(q).max(initial=1))
    assert (best_of_more >= best_of_few - tolerance).all()


@given(candidate_sets(regimes=MODERATE), st.floats(0, 10), st.sampled_from(["raw", "standardized"]))
def test_without_support_weight_the_best_lower_bound_is_chosen(
    candidates: CandidateSet, kappa: float, value_scale: str
) -> None:
    selection = SelectionConfig(
        kappa=kappa,
        support_weight=0.0,
        value_scale=value_scale,
        bound="lower",
        gain_kappa=None,
    )
    index, _ = decide(candidates, selection)
    for place in reference.indices(*index.shape):
        q = [member[place].double().tolist() for member in candidates.q]
        bound = reference.lower_bound(q, kappa)
        size = (1 + kappa) * max(abs(v) for member in q for v in member)
        assert bound[int(index[place])] >= max(bound) - 1e-4 * (1 + size)


# -- temperature ---------------------------------------------------------------------------------


@given(scores_of_any_batch, st.sampled_from([1e-300, 1e-40, 1e-6, 0.1, 1.0, 1e30, 1e300]), seeds)
def test_a_draw_at_any_temperature_is_one_of_the_candidates(
    x: np.ndarray, temperature: float, seed: int
) -> None:
    scores = torch.from_numpy(x)
    index = select(scores, temperature, torch.Generator().manual_seed(seed))
    assert index.shape == scores.shape[:-1]
    assert ((index >= 0) & (index < 6)).all()
    if temperature <= 1e-40:
        best = scores.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        assert torch.equal(best, scores.amax(-1))


def test_draws_follow_the_softmax_of_the_scores() -> None:
    """Chi-squared at level 1e-6, seed fixed: a right sampler is refused once in a million seeds."""
    from scipy.stats import chisquare

    scores, temperature, count = [0.0, 0.5, -1.0, -math.inf, 0.2], 0.7, 20_000
    many = torch.tensor(scores).expand(count, -1)
    index = select(many, temperature, torch.Generator().manual_seed(0))
    seen = np.bincount(index.numpy(), minlength=5)
    weights = [math.exp(s / temperature) for s in scores]
    expected = np.array([count * w / sum(weights) for w in weights])
    assert seen[3] == 0
    alive = expected > 0
    assert chisquare(seen[alive], expected[alive]).pvalue > 1e-6
    at_one = np.exp([scores[i] for i in np.flatnonzero(alive)])
    assert chisquare(seen[alive], count * at_one / at_one.sum()).pvalue < 1e-6, "no power"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_nothing_is_usable_the_first_candidate_stands_in(temperature: float) -> None:
    scores = torch.full((3, 5), -torch.inf)
    scores[1, 4] = 0.0
    index = select(scores, temperature, torch.Generator().manual_seed(0))
    assert index.tolist() == [0, 4, 0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 3)])
def test_an_empty_batch_gives_an_empty_choice(temperature: float, shape: tuple[int, ...]) -> None:
    index = select(torch.zeros(shape), temperature, torch.Generator())
    assert index.shape == shape[:-1]


def test_the_seed_decides_the_draw() -> None:
    scores = torch.zeros(50, 9)
    first, again, other = (
        select(scores, 1.0, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
