"""Ranking quality where the answer is known: perfect, reversed and blind scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from fakes import tiny_policy

from gem_policy.config import SelectionConfig
from gem_policy.ranking import compare, rank_correlations, reliability, score_components, summarize

STATES, COUNT = 6, 9


def some_returns(seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(STATES, COUNT))


# -- statistics ----------------------------------------------------------------------------------


def test_a_perfect_score_has_tau_1_and_no_regret() -> None:
    returns = some_returns()
    found = compare(np.exp(returns), returns)
    assert found["tau"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["tau_states"] == STATES
    assert found["regret"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["gain"] == found["room"]
    assert found["worse"]["mean"] == 0
    assert found["better"]["mean"] == np.mean(returns.max(-1) > returns[:, 0])


def test_a_reversed_score_has_tau_minus_1_and_all_regret() -> None:
    returns = some_returns()
    found = compare(-returns, returns)
    assert found["tau"]["mean"] == -1.0
    assert found["regret"]["mean"] == pytest.approx(np.ptp(returns, axis=-1).mean())
    assert found["better"]["mean"] == 0
    assert found["worse"]["mean"] == np.mean(returns.min(-1) < returns[:, 0])


def test_every_number_is_the_one_counted_by_hand() -> None:
    returns = np.array([[1.0, 3.0, 2.0], [5.0, 4.0, 6.0]])
    scores = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 0.5]])  # takes candidate 2, then candidate 1
    found = compare(scores, returns)
    assert found["regret"]["mean"] == pytest.approx((1 + 2) / 2)
    assert found["gain"]["mean"] == pytest.approx((1 - 1) / 2)
    assert found["room"]["mean"] == pytest.approx((2 + 1) / 2)
    assert found["random_regret"]["mean"] == pytest.approx((1 + 1) / 2)
    assert found["better"]["mean"] == found["worse"]["mean"] == 0.5
    # Pairs in order less pairs out of order: 2 - 1 of 3, and 1 - 2 of 3.
    assert rank_correlations(scores, returns).tolist() == pytest.approx([1 / 3, -1 / 3])


def test_states_in_which_nothing_matters_do_not_count_for_tau() -> None:
    returns = some_returns()
    returns[1] = 0.7 + 1e-12 * np.arange(COUNT)  # equal but for rounding
    returns[2] = 0.0
    scores = returns.copy()
    scores[3] = 1.0  # and where all scores are the same there is no order either
    found = compare(scores, returns)
    assert found["tau"]["mean"] == 1.0 and found["tau_states"] == STATES - 3
    undefined = np.isnan(rank_correlations(scores, returns))
    assert undefined.tolist() == [False, True, True, True, False, False]
    assert compare(scores[1:3], returns[1:3])["tau"] is None
    assert compare(scores[1:3], returns[1:3])["better"]["mean"] == 0


def test_a_blind_score_loses_what_a_blind_choice_loses() -> None:
    """Independent of the returns: tau near 0, regret near that of a random candidate."""
    rng = np.random.default_rng(0)
    returns, scores = rng.normal(size=(2, 400, COUNT))
    found = compare(scores, returns)
    assert found["tau"]["low"] < 0 < found["tau"]["high"]
    assert found["regret"]["low"] < found["random_regret"]["mean"] < found["regret"]["high"]
    assert found["gain"]["low"] < 0 < found["gain"]["high"]


def test_reliability_is_the_agreement_of_the_repeats() -> None:
    returns = some_returns()
    same = np.repeat(returns[..., None], 4, -1)
    assert reliability(same[..., :1]) is None
    agreed = reliability(same)
    assert agreed is not None and agreed["mean"] == 1.0
    opposed = reliability(same * np.array([1.0, -1.0, 1.0, -1.0]))
    assert opposed is not None and opposed["mean"] == -1.0
    assert reliability(np.zeros((STATES, COUNT, 2))) is None


# -- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", ["lower", "paired"])
def test_scores_of_every_budget_are_those_that_decide_would_give(bound: str) -> None:
    selection = SelectionConfig(kappa=2.0, support_weight=0.7, bound=bound, gain_kappa=0.0)
    policy = tiny_policy(selection=selection.replace(least_gain=0.2))
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    actions, found = score_components(policy, rows, [1, 4, 16])
    assert actions.shape == (5, 16, 2)
    for count, parts in found.items():
        decision = policy.decide(rows, count=count)
        np.testing.assert_allclose(parts["score"], decision.scores, rtol=1e-4, atol=1e-5)
        q = decision.candidates.q.double().numpy()
        np.testing.assert_allclose(parts["mean_q"], q.mean(0), rtol=1e-4, atol=1e-5)
        bound_of = q.mean(0) - 2 * q.std(0)
        np.testing.assert_allclose(parts["lower_bound"], bound_of, rtol=1e-4, atol=1e-5)
        gain = q - q[..., :1]
        paired = gain.mean(0) - 2 * gain.std(0)
        np.testing.assert_allclose(parts["paired_bound"], paired, rtol=1e-4, atol=1e-5)
        chosen = actions[np.arange(5), parts["score"].argmax(-1)]
        np.testing.assert_allclose(chosen, decision.action, atol=1e-6)


def test_a_summary_takes_the_candidates_of_each_budget() -> None:
    returns = some_returns()[..., None]
    parts: dict[int, Mapping[str, Any]] = {
        n: {"score": returns[:, :n, 0], "mean_q": -returns[:, :n, 0]} for n in (1, 4, COUNT)
    }
    found = summarize(parts, returns)
    assert list(found) == ["1", "4", str(COUNT)]
    assert found["1"]["tau"] is None and found["1"]["room"]["mean"] == 0
    for count in (4, COUNT):
        best = returns[:, :count, 0].max(-1)
        assert found[str(count)]["gain"]["mean"] == pytest.approx(np.mean(best - returns[:, 0, 0]))
        assert found[str(count)]["tau_of"]["score"]["mean"] == 1
        assert found[str(count)]["tau_of"]["mean_q"]["mean"] == -1
