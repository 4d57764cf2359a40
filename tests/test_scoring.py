"""Scoring rules: lower bound, support, their sum; against loop-written twins."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import (
    FINITE,
    MODERATE,
    arrays,
    batches,
    candidate_set,
    candidate_sets,
    kappas,
    selections,
)

from gem_policy.candidates import CandidateSet
from gem_policy.config import SelectionConfig
from gem_policy.scoring import (
    RULES,
    BehaviorNormalized,
    Improving,
    LowerBound,
    PairedBound,
    ScoringRule,
    Standardized,
    lower_bound,
    rule_of,
    standardize,
)
from gem_policy.selection import usable_scores

BROKEN = (math.nan, math.inf, -math.inf)
rules = st.sampled_from(
    [
        LowerBound(0.7),
        PairedBound(0.7),
        Standardized(LowerBound(0.7)),
        Standardized(PairedBound(0.0)),
        BehaviorNormalized(LowerBound(1.3), 0.5),
        BehaviorNormalized(Standardized(PairedBound(2.0)), 3.0),
        Improving(BehaviorNormalized(Standardized(PairedBound(0.5)), 3.0), 0.5),
        Improving(LowerBound(1.0), 0.0),
        Improving(LowerBound(1.0), 1.0, 0.5),
        Improving(LowerBound(1.0), 1.0, 0.5, 0.1),
    ]
)
moderate = candidate_sets(regimes=MODERATE)


def rows(*tensors: torch.Tensor) -> Any:
    """Index and float64 lists of every state; tensors have (*batch, candidates)."""
    for place in reference.indices(*tensors[0].shape[:-1]):
        yield place, *(t[place].double().tolist() for t in tensors)


def members(candidates: CandidateSet, place: tuple[int, ...]) -> list[list[float]]:
    """q[e][n] of one state."""
    return [q[place].double().tolist() for q in candidates.q]


def near(got: torch.Tensor, expected: list[float], scale: float) -> None:
    assert got.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4 * (1 + scale), nan_ok=True)


# -- lower bound ---------------------------------------------------------------------------------


@given(candidate_sets(batches, MODERATE), kappas)
def test_lower_bound_is_the_formula(candidates: CandidateSet, kappa: float) -> None:
    got = lower_bound(candidates.q, kappa)
    assert got.shape == candidates.log_behavior.shape
    for place in reference.indices(*got.shape[:-1]):
        near(got[place], reference.lower_bound(members(candidates, place), kappa), 1 + kappa)


@given(candidate_sets(regimes=FINITE), kappas)
def test_lower_bound_is_at_most_the_mean(candidates: CandidateSet, kappa: float) -> None:
    mean, bound = candidates.q.mean(0), lower_bound(candidates.q, kappa)
    fine = torch.isfinite(mean) & torch.isfinite(bound)
    assert (bound[fine] <= mean[fine]).all()


@given(candidate_sets(regimes=FINITE))
def test_lower_bound_without_pessimism_or_ensemble_is_the_mean(candidates: CandidateSet) -> None:
    assert torch.equal(lower_bound(candidates.q, 0.0), candidates.q.mean(0))
    one = candidates.q[:1]
    assert torch.equal(lower_bound(one, 3.0), one[0])


@given(moderate, kappas, kappas)
def test_lower_bound_never_rises_with_kappa(
    candidates: CandidateSet, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert (lower_bound(candidates.q, high) <= lower_bound(candidates.q, low)).all()


@given(moderate, kappas, st.randoms(use_true_random=False))
def test_lower_bound_does_not_know_the_order_of_the_members(
    candidates: CandidateSet, kappa: float, random: Any
) -> None:
    order = list(range(candidates.q.shape[0]))
    random.shuffle(order)
    turned = lower_bound(candidates.q[order], kappa)
    assert torch.allclose(turned, lower_bound(candidates.q, kappa), rtol=1e-5, atol=1e-3)


@given(moderate, kappas, st.floats(0.01, 100), st.floats(-100, 100))
def test_lower_bound_moves_and_scales_with_the_values(
    candidates: CandidateSet, kappa: float, factor: float, shift: float
) -> None:
    q = candidates.q.double()
    expected = factor * lower_bound(q, kappa) + shift
    assert torch.allclose(lower_bound(factor * q + shift, kappa), expected, rtol=1e-9, atol=1e-9)


@given(moderate, kappas, st.integers(2, 4))
def test_lower_bound_does_not_change_when_every_member_is_there_twice(
    candidates: CandidateSet, kappa: float, times: int
) -> None:
    q = candidates.q.double()
    again = lower_bound(q.repeat(times, *[1] * (q.ndim - 1)), kappa)
    assert torch.allclose(again, lower_bound(q, kappa), rtol=1e-9, atol=1e-9)


@given(moderate, kappas)
def test_paired_bound_is_the_lower_bound_of_the_gain_over_the_first(
    candidates: CandidateSet, kappa: float
) -> None:
    got = PairedBound(kappa)(candidates)
    assert (got[..., 0] == 0).all()
    for place in reference.indices(*got.shape[:-1]):
        near(got[place], reference.paired_bound(members(candidates, place), kappa), 2 + kappa)


@given(moderate, kappas, st.floats(-50, 50))
def test_paired_bound_forgets_what_a_member_thinks_of_the_whole_state(
    candidates: CandidateSet, kappa: float, shift: float
) -> None:
    offsets = shift * torch.arange(candidates.q.shape[0], dtype=torch.float64)
    q = candidates.q.double()
    moved = q + offsets.reshape(-1, *[1] * (q.ndim - 1))
    first, second = (PairedBound(kappa)(candidate_set_of(x, candidates)) for x in (q, moved))
    assert torch.allclose(first, second, rtol=1e-9, atol=1e-8)


def candidate_set_of(q: torch.Tensor, like: CandidateSet) -> CandidateSet:
    return CandidateSet(like.actions, like.component, q, like.log_behavior)


# -- support -------------------------------------------------------------------------------------


@given(batches.flatmap(lambda b: arrays((*b, 6))))
def test_standardized_numbers_have_mean_zero_and_std_one_or_are_zero(x: np.ndarray) -> None:
    z = standardize(torch.from_numpy(x)).double()
    assert z.shape == x.shape
    assert torch.allclose(z.mean(-1), torch.zeros(z.shape[:-1]).double(), atol=1e-5)
    deviation = z.std(-1, correction=0) if z.numel() else torch.zeros(z.shape[:-1])
    one = (deviation - 1).abs() < 1e-4
    none = (z == 0).all(-1)
    assert (one | none).all()
    assert (none == one.logical_not()).all()


@given(st.integers(1, 9).flatmap(lambda n: arrays((n,), ["ordinary", "ties", "huge", "broken"])))
def test_standardize_is_the_formula(x: np.ndarray) -> None:
    got = standardize(torch.from_numpy(x))
    near(got, reference.standardize(x.astype(float).tolist()), 1)


@pytest.mark.parametrize("value", [0.0, 1.0, -7.3e30, 1e-45, 3.4e38])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_tied_candidates_have_no_support_to_tell_them_apart(value: float, count: int) -> None:
    x = torch.full((3, count), value)
    assert (standardize(x) == 0).all()


def test_rounding_is_no_difference() -> None:
    x = torch.tensor([1.0, 1.0 + 2**-22, 1.0, 1.0 - 2**-23])
    assert len(set(x.tolist())) == 3
    assert (standardize(x) == 0).all()


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-20, 1.0, 1e20, 1e38])
def test_the_magnitude_of_the_numbers_does_not_matter(scale: float) -> None:
    x = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64) * scale
    expected = [(v - 1.5) / math.sqrt(1.25) for v in range(4)]
    assert standardize(x.float()).tolist() == pytest.approx(expected, rel=0.1)


@given(candidate_sets(regimes=("ordinary",)), st.floats(0.01, 100), st.floats(-1000, 1000))
def test_support_does_not_change_with_the_scale_or_offset_of_a_density(
    candidates: CandidateSet, factor: float, shift: float
) -> None:
    x = candidates.log_behavior.double()
    spread = x.amax(-1) - x.amin(-1)
    assume(bool((spread > 1e-2).all()))
    assert torch.allclose(standardize(x * factor + shift), standardize(x), atol=1e-6)


@given(arrays((4, 5), tuple(FINITE) + ("broken",)), arrays((4, 5)), st.integers(0, 3))
def test_other_states_of_the_batch_have_no_influence(
    x: np.ndarray, other: np.ndarray, kept: int
) -> None:
    mixed = other.copy()
    mixed[kept] = x[kept]
    alone = standardize(torch.from_numpy(x[kept]))
    together = standardize(torch.from_numpy(mixed))[kept]
    assert torch.allclose(alone, together, rtol=1e-6, atol=1e-6, equal_nan=True)


@given(arrays((7,), ["ordinary"]), st.lists(st.booleans(), min_size=7, max_size=7))
def test_what_is_not_finite_does_not_count_and_stays(x: np.ndarray, dead: list[bool]) -> None:
    broken = np.where(dead, np.float32(np.nan), x)
    got = standardize(torch.from_numpy(broken))
    keep = ~np.array(dead)
    assert torch.isnan(got[torch.from_numpy(~keep)]).all()
    if keep.any():
        expected = standardize(torch.from_numpy(x[keep].copy()))
        assert torch.allclose(got[torch.from_numpy(keep)], expected, atol=1e-5)


# -- the whole rule ------------------------------------------------------------------------------


@given(candidate_sets(regimes=(*MODERATE, "broken")), selections, st.sampled_from([0.0, 0.3, 1.0]))
def test_the_rule_of_any_settings_is_the_formula(
    candidates: CandidateSet, selection: SelectionConfig, unit: float
) -> None:
    got = usable_scores(candidates, rule_of(selection, unit)(candidates))
    for place in reference.indices(*got.shape[:-1]):
        q, density = members(candidates, place), candidates.log_behavior[place].double().tolist()
        expected = reference.scores_by(selection, unit, q, density)
        # Where tied values differ by rounding alone, float32 may see a tie that float64 does not.
        values = [v for v in expected if math.isfinite(v)]
        assert torch.isfinite(got[place]).tolist() == [math.isfinite(v) for v in expected]
        largest = max([abs(v) for v in values], default=0)
        if not hair_thin(candidates, place, selection, unit):
            near(got[place], expected, largest)


def hair_thin(
    candidates: CandidateSet, place: tuple[int, ...], chosen: SelectionConfig, unit: float
) -> bool:
    """Whether rounding may decide: bounds that hardly differ, or a gain of about 0."""
    if chosen.gain_kappa is not None:
        least = chosen.least_gain * unit
        per_nat = chosen.gain_per_nat * chosen.support_weight * unit
        if gains_are_thin(candidates, place, chosen.gain_kappa, least, per_nat):
            return True
        if decided_by_a_hair(candidates, place, chosen):
            return True
    if chosen.value_scale == "raw":
        return False
    find = reference.lower_bound if chosen.bound == "lower" else reference.paired_bound
    bound = [v for v in find(members(candidates, place), chosen.kappa) if math.isfinite(v)]
    if not bound:
        return False
    size = max(abs(v) for q in members(candidates, place) for v in q if math.isfinite(v))
    return reference.std_of(bound) < 1e-2 * (1 + chosen.kappa) * max(size, 1e-6)


def gains_are_thin(
    candidates: CandidateSet, place: tuple[int, ...], kappa: float, least: float, per_nat: float
) -> bool:
    """Whether some candidate's gain over the first is 0 but for float32's rounding."""
    q, density = members(candidates, place), candidates.log_behavior[place].double().tolist()
    size = max((abs(v) for m in q for v in m if math.isfinite(v)), default=0.0)
    size += per_nat * max((abs(v) for v in density if math.isfinite(v)), default=0.0)
    asked = reference.asked_gains(q, density, least, per_nat)
    gains = [v for v in reference.paired_bound(q, kappa, asked) if math.isfinite(v)]
    return any(0 < abs(v) < 1e-5 * (1 + kappa) * size for v in gains)


def decided_by_a_hair(
    candidates: CandidateSet, place: tuple[int, ...], chosen: SelectionConfig
) -> bool:
    """Whether one of the deciding candidates has the first one's score but for rounding."""
    q, density = members(candidates, place), candidates.log_behavior[place].double().tolist()
    scores = reference.scores_by(chosen.replace(gain_kappa=None), 0.0, q, density)
    first, deciding = reference.first_finite(q) or 0, chosen.deciding_candidates or 0
    size = max((abs(v) for v in scores if math.isfinite(v)), default=0.0)
    size += max((abs(v) for m in q for v in m if math.isfinite(v)), default=0.0)
    others = [v for n, v in enumerate(scores[:deciding]) if n != first]
    return any(abs(v - scores[first]) < 1e-4 * (1 + chosen.kappa) * size for v in others)


@given(moderate, kappas, st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([0.0, 0.1]))
def test_what_must_improve_comes_after_the_first_where_it_does_not(
    candidates: CandidateSet, kappa: float, least: float, per_nat: float
) -> None:
    base = BehaviorNormalized(Standardized(PairedBound(kappa)), 1.0)
    plain, scores = base(candidates), Improving(base, kappa, least, per_nat)(candidates)
    mean = (candidates.q - candidates.q[..., :1]).mean(0)
    density = candidates.log_behavior
    lost = (density[..., :1] - density).clamp(min=0)
    better = (PairedBound(kappa)(candidates) > 0) & (mean > least + per_nat * lost)
    better[..., 0] = True
    assert torch.equal(scores[better], plain[better])
    first = scores[..., :1].expand_as(scores)
    assert (scores[~better] <= first[~better]).all()
    best = scores.argmax(-1, keepdim=True)
    assert better.gather(-1, best).all()
    # Behind the first the order is the rule's own.
    for place in reference.indices(*scores.shape[:-1]):
        others = (~better[place]).nonzero()[:, 0]
        order = plain[place][others].argsort(stable=True)
        moved = scores[place][others][order]
        assert (moved.diff() >= 0).all()


@given(st.integers(0, 2**31), st.integers(1, 12))
def test_the_first_candidates_decide_whether_and_all_of_them_which(
    seed: int, deciding: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, density = (torch.randn(n, 40, 12, generator=generator) for n in (2, 1))
    candidates = candidate_set(q, density[0])
    base = BehaviorNormalized(Standardized(PairedBound(3.0)), 1.0)
    free = Improving(base, 0.5)(candidates)
    held = Improving(base, 0.5, deciding=deciding)(candidates)
    leaves = free[..., :deciding].argmax(-1) > 0
    assert torch.equal(held.argmax(-1), torch.where(leaves, free.argmax(-1), 0))
    assert torch.equal(held[leaves], free[leaves])
    assert torch.equal(held[..., 0], free[..., 0])
    for all_of_them in (12, 13):
        assert torch.equal(Improving(base, 0.5, deciding=all_of_them)(candidates), free)


def test_one_good_candidate_among_many_is_not_enough() -> None:
    """One that decides must be sure of a gain, and beat the mode where that has a score."""
    q, density = torch.zeros(3, 6), torch.zeros(6)
    q[:, 4] = 1.0

    def chosen(
        deciding: int | None, values: Tensor = q, density: Tensor = density, weight: float = 2.0
    ) -> int:
        settings = SelectionConfig(support_weight=weight, deciding_candidates=deciding)
        rule = rule_of(settings, 1.0)
        candidates = candidate_set(values, density)
        return int(usable_scores(candidates, rule(candidates)).argmax())

    assert [chosen(k) for k in (None, 6, 5, 4, 1)] == [4, 4, 4, 0, 0]
    helped = q.clone()
    helped[:, 1] = 0.5  # is better too, and lets the best one pass
    assert chosen(2, helped) == 4
    rare = torch.tensor([0.0, -3.0, 0.0, 0.0, 0.0, 0.0])
    assert chosen(2, helped, rare) == 0  # where it is too rare to beat the mode, it does not
    usual = torch.tensor([0.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    assert chosen(2, q, usual) == 0  # beats the mode, but gains nothing
    usual[0] = math.nan  # then whoever gains may replace it, and else nobody
    assert chosen(2, q, usual) == chosen(2, q, usual, 0.0) == 4
    broken = torch.tensor([0.0, math.nan, 0.0, 0.0, 0.0, 0.0])
    assert chosen(2, helped, broken) == chosen(2, helped, broken, 0.0) == 0  # has no say
    endless = q.clone()
    endless[:, 1] = math.inf
    assert chosen(2, endless) == 0
    raw = BehaviorNormalized(LowerBound(0.0), 1.0)
    tied = candidate_set([[0.0, 2.0, 3.0, -9.0]], [1.0, -1.0, 1.0, -1.0])
    scores = raw(tied)
    assert scores[0] == scores[1] < scores[2], "candidate 1 gains what its rarity costs"
    assert int(Improving(raw, 0.0, deciding=2)(tied).argmax()) == 0


def test_a_budget_that_brings_no_sure_gain_changes_nothing() -> None:
    """However well supported a candidate is, and however good on the mean."""
    q = torch.tensor([[0.0, 3.0, 1.0], [0.0, -1.0, -1.0], [0.0, 1.0, 0.0]])
    candidates = candidate_set(q, [-5.0, 9.0, 8.0])
    settings = SelectionConfig(kappa=1.0)
    assert int(rule_of(settings, 1.0)(candidates).argmax()) == 0
    assert int(rule_of(settings.replace(gain_kappa=None), 1.0)(candidates).argmax()) == 1
    sure = candidate_set(q + torch.tensor([0.0, 3.0, 0.0]), [-5.0, 9.0, 8.0])
    assert int(rule_of(settings, 1.0)(sure).argmax()) == 1


def test_a_gain_must_be_large_in_units_of_the_policy_too() -> None:
    """All members agree on it, so that no kappa tells it from a better one."""
    q = torch.tensor([[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]])
    candidates = candidate_set(q, [-5.0, 9.0])
    settings = SelectionConfig(least_gain=0.25)
    for unit, chosen in ((0.0, 1), (1.9, 1), (2.1, 0)):
        assert int(rule_of(settings, unit)(candidates).argmax()) == chosen
    free = settings.replace(gain_kappa=None)
    assert int(rule_of(free, 2.1)(candidates).argmax()) == 1
    assert int(rule_of(settings, 1e300)(candidates).argmax()) == 0  # beyond float32


def test_a_gain_must_pay_for_the_support_that_it_gives_up() -> None:
    """Not for support that it wins, nor where nobody knows which it is."""
    q = torch.tensor([[0.0, 0.5, 0.4], [1.0, 1.5, 1.4], [2.0, 2.5, 2.4]])
    settings = SelectionConfig(support_weight=1e-3, least_gain=0.0, gain_per_nat=100.0)

    def chosen(*density: float, unit: float = 1.0, **changes: Any) -> int:
        rule, candidates = rule_of(settings.replace(**changes), unit), candidate_set(q, density)
        return int(usable_scores(candidates, rule(candidates)).argmax())

    assert chosen(3.0, -1.9, 0.0) == 1  # 4.9 nats, for which 0.49 is asked
    assert chosen(3.0, -2.1, 0.0) == 2  # 5.1: the second best pays for its 3
    assert chosen(3.0, -2.1, 0.0, unit=2.0) == 0
    assert chosen(3.0, -2.1, 0.0, gain_per_nat=0.0) == 1
    assert chosen(3.0, -2.1, 0.0, support_weight=0.0) == 1  # density has no say then
    assert chosen(3.0, -2.1, 0.0, gain_kappa=None) == 1
    assert chosen(3.0, -1.9, 0.0, least_gain=0.02) == 2  # both are asked for, one after the other
    assert chosen(3.0, 9.0, 3.0, unit=1e300) == 1  # the price of nothing, beyond float32
    assert chosen(math.nan, -9.0, 0.0) == 1


@given(moderate, kappas, st.floats(0, 2), st.floats(0, 2))
def test_a_higher_price_of_support_never_lets_more_candidates_through(
    candidates: CandidateSet, kappa: float, one: float, other: float
) -> None:
    """And what is chosen never gives up more support than its gain pays for."""
    low, high = sorted((one, other))
    base = LowerBound(kappa)
    scores = {p: Improving(base, kappa, 0.0, p)(candidates) for p in (low, high)}
    plain = base(candidates)
    assert ((scores[high] != plain) | (scores[low] == plain)).all()
    best = scores[high].argmax(-1, keepdim=True)
    gain = (candidates.q - candidates.q[..., :1]).mean(0).gather(-1, best)
    density = candidates.log_behavior
    lost = density[..., :1] - density.gather(-1, best)
    assert ((best == 0) | (gain > high * lost.clamp(min=0))).all()


@given(rules, candidate_sets(regimes=MODERATE), st.randoms(use_true_random=False))
def test_scores_follow_a_permutation_of_the_candidates(
    rule: ScoringRule, candidates: CandidateSet, random: Any
) -> None:
    order = list(range(1, candidates.log_behavior.shape[-1]))
    random.shuffle(order)
    order = [0, *order]  # the paired bound is about candidate 0
    q, density = candidates.q.double(), candidates.log_behavior.double()
    straight = rule(CandidateSet(candidates.actions, candidates.component, q, density))
    turned = rule(
        CandidateSet(
            candidates.actions[..., order, :],
            candidates.component[..., order],
            q[..., order],
            density[..., order],
        )
    )
    assert torch.allclose(turned, straight[..., order], rtol=1e-6, atol=1e-6)


@given(rules, candidate_sets(st.sampled_from([(3,), (3, 2)]), MODERATE))
def test_scores_of_a_batch_are_those_of_its_rows(
    rule: ScoringRule, candidates: CandidateSet
) -> None:
    together = rule(candidates)
    for place in reference.indices(*together.shape[:-1]):
        row = CandidateSet(
            candidates.actions[place],
            candidates.component[place],
            candidates.q[(slice(None), *place)],
            candidates.log_behavior[place],
        )
        assert torch.allclose(rule(row), together[place], rtol=1e-5, atol=1e-5)


@given(candidate_sets(regimes=MODERATE), selections)
def test_without_support_weight_the_density_has_no_say(
    candidates: CandidateSet, selection: SelectionConfig
) -> None:
    rule = rule_of(selection.replace(support_weight=0.0), 1.0)
    other = CandidateSet(
        candidates.actions, candidates.component, candidates.q, -3 * candidates.log_behavior
    )
    assert torch.equal(rule(candidates), rule(other))
    free = selection.replace(gain_kappa=None)
    plain = rule_of(free.replace(support_weight=0.0, value_scale="raw", bound="lower"), 1.0)
    assert torch.equal(plain(candidates), lower_bound(candidates.q, selection.kappa))


@given(candidate_sets(regimes=MODERATE), st.sampled_from(["raw", "standardized"]))
def test_an_endless_support_weight_takes_the_most_supported(
    candidates: CandidateSet, value_scale: str
) -> None:
    settings = SelectionConfig(support_weight=1e12, value_scale=value_scale, gain_kappa=None)
    scores = rule_of(settings, 1.0)(candidates)
    density = candidates.log_behavior
    best = density.gather(-1, scores.argmax(-1, keepdim=True)).squeeze(-1)
    gap = (density.amax(-1) - best).abs()
    assert (gap <= 1e-6 * density.abs().amax(-1)).all()


@given(st.sampled_from([0, 1, 2]), st.sampled_from(BROKEN), selections)
def test_a_broken_first_candidate_spoils_no_other(
    spoilt: int, value: float, selection: SelectionConfig
) -> None:
    q = torch.tensor([[1.0, 2.0, 3.0, 0.0], [1.5, 2.5, 2.0, 1.0], [0.0, 1.0, 2.0, 3.0]])
    q[spoilt, 0] = value
    candidates = candidate_set(q, [0.0, -1.0, -2.0, -3.0])
    scores = usable_scores(candidates, rule_of(selection, 1.0)(candidates))
    assert torch.isfinite(scores).tolist() == [False, True, True, True]


def test_rules_are_values() -> None:
    """Printable, comparable, picklable; and each has its line in the registry."""
    rule = BehaviorNormalized(Standardized(LowerBound(0.5)), 2.0)
    assert rule == BehaviorNormalized(Standardized(LowerBound(0.5)), 2.0) != LowerBound(0.5)
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert repr(rule) == (
        "BehaviorNormalized(base=Standardized(base=LowerBound(kappa=0.5), knee=None), weight=2.0)"
    )
    assert set(RULES.values()) == {
        LowerBound,
        PairedBound,
        Standardized,
        BehaviorNormalized,
        Improving,
    }
    assert all(isinstance(made, ScoringRule) for made in (rule, rule.base))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {
                "value_scale": "raw",
                "support_weight": 0.0,
                "kappa": 2.0,
                "bound": "lower",
                "gain_kappa": None,
            },
            LowerBound(2.0),
        ),
        (
            {"value_scale": "raw", "support_weight": 0.5, "gain_kappa": None},
            BehaviorNormalized(PairedBound(3.0), 0.5),
        ),
        (
            {"gain_per_nat": 0.1, "support_weight": 0.5},
            Improving(BehaviorNormalized(Standardized(PairedBound(3.0)), 0.5), 2.0, 0.06, 0.05, 64),
        ),
    ],
)
def test_settings_name_their_rule(settings: dict[str, Any], expected: ScoringRule) -> None:
    assert rule_of(SelectionConfig(**settings), 1.0) == expected
