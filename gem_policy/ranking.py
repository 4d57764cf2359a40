"""How well a policy ranks its candidates, measured in the simulator itself.

Scores should have predicted the returns that `gem_policy.rollouts` finds for the candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from gem_policy.candidates import CandidateSet
from gem_policy.errors import DependencyError
from gem_policy.evaluate import Interval
from gem_policy.policy import GEMPolicy
from gem_policy.scoring import lower_bound, rule_of
from gem_policy.selection import usable_scores

Array = NDArray[np.float64]
ROWS = 4096  # observations that are scored at once
TIE = 1e-9  # returns that differ by less, relative to their size, are the same


def score_components(
    policy: GEMPolicy, observations: Float[Tensor, "states obs"], budgets: Sequence[int]
) -> tuple[NDArray[Any], dict[int, dict[str, Array]]]:
    """The deterministic candidates, and for each budget what their score is made of.

    Args:
        policy: With the selection settings to measure.
        observations: Flattened, in environment units.
        budgets: Each N' scores the first N' candidates among themselves, as `decide` would.

    Returns:
        The actions of the largest budget in environment units, shape (states, N, action), and by
        budget the arrays (states, N') of ``mean_q``, ``lower_bound`` and ``paired_bound`` (with
        the selection's kappa), ``log_behavior`` and ``score``, the selection's own.
    """
    most = max(budgets)
    parts = [policy.decide(rows, count=most).candidates for rows in torch.split(observations, ROWS)]
    whole = CandidateSet(
        torch.cat([p.actions for p in parts]),
        torch.cat([p.component for p in parts]),
        torch.cat([p.q for p in parts], 1),
        torch.cat([p.log_behavior for p in parts]),
    )
    rule = rule_of(policy.selection, policy.config.gain_unit)
    kappa = policy.selection.kappa
    out: dict[int, dict[str, Array]] = {}
    for count in budgets:
        some = CandidateSet(
            whole.actions[:, :count],
            whole.component[:, :count],
            whole.q[..., :count],
            whole.log_behavior[:, :count],
        )
        found = {
            "mean_q": some.q.mean(0),
            "lower_bound": lower_bound(some.q, kappa),
            "paired_bound": lower_bound(some.q - some.q[..., :1], kappa),
            "log_behavior": some.log_behavior,
            "score": usable_scores(some, rule(some)),
        }
        out[count] = {name: x.double().cpu().numpy() for name, x in found.items()}
    return policy.scaler.invert(whole.actions).cpu().numpy(), out


def rank_correlations(scores: Array, returns: Array) -> Array:
    """Kendall's tau-b of scores and returns in every state; NaN where either are all the same.

    Args:
        scores: Shape (states, candidates).
        returns: The same shape.

    Raises:
        DependencyError: scipy is not installed.
    """
    try:
        from scipy.stats import kendalltau
    except ImportError as error:
        raise DependencyError(
            "Rank correlations need scipy: pip install 'gem-policy[sb3]'."
        ) from error
    out = np.full(len(scores), np.nan)
    for i, (score, value) in enumerate(zip(scores, _rounded(returns), strict=True)):
        if np.ptp(score) > 0 and np.ptp(value) > 0:
            out[i] = kendalltau(score, value).statistic
    return out


def _rounded(returns: Array) -> Array:
    """Returns with those that differ by rounding errors alone made equal."""
    step = TIE * np.maximum(np.abs(returns).max(-1, keepdims=True), 1.0)
    rounded: Array = np.round(returns / step) * step
    return rounded


def compare(scores: Array, returns: Array) -> dict[str, Any]:
    """What choosing by score was worth, over states, each with its bootstrap interval.

    Args:
        scores: Shape (states, candidates); the first best is chosen, as by `select`.
        returns: What each candidate was worth. Candidate 0 is the actor's mode.

    Returns:
        Intervals of ``regret`` (best candidate less the chosen one), ``gain`` (chosen less mode),
        ``room`` (best less mode: what could be gained), ``random_regret`` (best less the mean of
        all: what a blind choice loses), of the shares of states ``better`` and ``worse`` than the
        mode, and of Kendall's ``tau`` over the ``tau_states`` in which it is defined.
    """
    place, rounded = scores.argmax(-1)[:, None], _rounded(returns)
    chosen, even = (np.take_along_axis(x, place, -1)[:, 0] for x in (returns, rounded))
    best, mode = returns.max(-1), returns[:, 0]
    tau = rank_correlations(scores, returns)
    tau = tau[~np.isnan(tau)]
    columns = {
        "regret": best - chosen,
        "gain": chosen - mode,
        "room": best - mode,
        "random_regret": best - returns.mean(-1),
        "better": (even > rounded[:, 0]).astype(float),
        "worse": (even < rounded[:, 0]).astype(float),
    }
    out: dict[str, Any] = {
        name: asdict(Interval.of(column.tolist())) for name, column in columns.items()
    }
    out["tau"] = asdict(Interval.of(tau.tolist())) if len(tau) else None
    out["tau_states"] = len(tau)
    return out


def reliability(returns: NDArray[np.float64]) -> dict[str, float] | None:
    """Tau between the means of two halves of the repeats: what a perfect score could reach.

    Args:
        returns: Shape (states, candidates, repeats).

    Returns:
        None where there are fewer than two repeats, or where all candidates tie.
    """
    if returns.shape[-1] < 2:
        return None
    tau = rank_correlations(returns[..., ::2].mean(-1), returns[..., 1::2].mean(-1))
    tau = tau[~np.isnan(tau)]
    return asdict(Interval.of(tau.tolist())) if len(tau) else None


def summarize(
    components: Mapping[int, Mapping[str, Array]], returns: NDArray[np.float64]
) -> dict[str, Any]:
    """`compare` for every budget by the full score, and the tau of every part of the score.

    Args:
        components: As `score_components` gives them.
        returns: Shape (states, candidates, repeats).

    Returns:
        By budget, as a string: what `compare` returns, and ``tau_of`` with each component's tau.
    """
    mean = returns.mean(-1)
    out: dict[str, Any] = {}
    for count, parts in components.items():
        found = compare(parts["score"], mean[:, :count])
        taus = {name: rank_correlations(x, mean[:, :count]) for name, x in parts.items()}
        known = {name: tau[~np.isnan(tau)].tolist() for name, tau in taus.items()}
        found["tau_of"] = {
            name: asdict(Interval.of(tau)) if tau else None for name, tau in known.items()
        }
        out[str(count)] = found
    return out
