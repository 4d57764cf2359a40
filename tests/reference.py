"""Slow twins of the method in float64: one number at a time, written as loops from the formulas.

Nothing here imports the package's mathematics; agreement means that two people wrote the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

TIE = 1e-6


def indices(*batch: int) -> Iterator[tuple[int, ...]]:
    """Every index of the batch axes."""
    return np.ndindex(*batch)


# -- mixture -----------------------------------------------------------------------------------


def log_sum_exp(values: Sequence[float]) -> float:
    top = max(values)
    if math.isinf(top):
        return top
    return top + math.log(sum(math.exp(v - top) for v in values))


def component_log_prob(
    logits: Sequence[float], mean: Any, log_std: Any, action: Sequence[float]
) -> list[float]:
    """log alpha_k + log N(a; mu_k, sigma_k) of one action, for every component."""
    total = log_sum_exp(logits)
    out = []
    for k in range(len(logits)):
        value = logits[k] - total
        for d in range(len(action)):
            std = math.exp(log_std[k][d])
            x = (action[d] - mean[k][d]) / std
            value += -0.5 * x * x - math.log(std) - 0.5 * math.log(2 * math.pi)
        out.append(value)
    return out


def log_prob(logits: Sequence[float], mean: Any, log_std: Any, action: Sequence[float]) -> float:
    return log_sum_exp(component_log_prob(logits, mean, log_std, action))


# -- scoring and selection ---------------------------------------------------------------------


def in_waves(observation: list[float], frequencies: int) -> list[float]:
    """The numbers, then their sines by rising frequency, then their cosines."""
    angles = [2**k * x for k in range(frequencies) for x in observation]
    return observation + [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def member_outputs(ensemble: Any, member: int, inputs: list[float]) -> list[float]:
    """One member's network of an ensemble in float64, one unit at a time."""
    values = inputs
    last = len(ensemble.weights) - 1
    for layer in range(last + 1):
        weight = ensemble.weights[layer][member].double().tolist()
        bias = ensemble.biases[layer][member, 0].double().tolist()
        values = [
            bias[o] + math.fsum(values[i] * weight[i][o] for i in range(len(values)))
            for o in range(len(bias))
        ]
        if layer < last:
            if ensemble.layer_norm:
                mean = math.fsum(values) / len(values)
                variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
                values = [(v - mean) / math.sqrt(variance + 1e-5) for v in values]
            values = [max(v, 0.0) for v in values]
    return values


def mean_of(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def std_of(values: Sequence[float]) -> float:
    """Population standard deviation."""
    centre = mean_of(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / len(values))


def lower_bound(
    q: Sequence[Sequence[float]], kappa: float, least: Sequence[float] | None = None
) -> list[float]:
    """mean_E Q - kappa std_E Q, or - least[n] where that is more; q[e][n]."""
    bound = []
    for n in range(len(q[0])):
        members = [member[n] for member in q]
        if all(math.isfinite(m) for m in members):
            asked = 0.0 if least is None else least[n]
            bound.append(mean_of(members) - max(kappa * std_of(members), asked))
        else:
            bound.append(math.nan)
    return bound


def first_finite(q: Sequence[Sequence[float]]) -> int | None:
    """The first candidate whose values are all numbers."""
    places = range(len(q[0]))
    return next((n for n in places if all(math.isfinite(member[n]) for member in q)), None)


def paired_bound(
    q: Sequence[Sequence[float]], kappa: float, least: Sequence[float] | None = None
) -> list[float]:
    """Lower bound of the members' differences to the first candidate that is finite."""
    first = first_finite(q)
    if first is None:
        return [math.nan] * len(q[0])
    return lower_bound([[v - member[first] for v in member] for member in q], kappa, least)


def asked_gains(
    q: Sequence[Sequence[float]], log_behavior: Sequence[float], least: float, per_nat: float
) -> list[float]:
    """What each candidate must gain on the mean: more for every nat that it gives up."""
    lost = [log_behavior[first_finite(q) or 0] - v for v in log_behavior]
    return [least + (per_nat * nats if nats > 0 else 0.0) for nats in lost]


def standardize(values: Sequence[float]) -> list[float]:
    """Mean 0 and population std 1 of the finite values; 0 where these tie."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return list(values)
    centre, deviation = mean_of(finite), std_of(finite)
    if deviation <= TIE * math.hypot(deviation, centre):
        return [0.0 if math.isfinite(v) else v for v in values]
    return [(v - centre) / deviation if math.isfinite(v) else v for v in values]


def scores(
    q: Sequence[Sequence[float]],
    log_behavior: Sequence[float],
    *,
    kappa: float,
    weight: float,
    value_scale: str,
    bound: str,
    gain_kappa: float | None = None,
    least_gain: float = 0.0,
    gain_per_nat: float = 0.0,
    deciding: int | None = None,
) -> list[float]:
    """The score of every candidate of one state; -inf where one of its numbers is not finite."""
    value = lower_bound(q, kappa) if bound == "lower" else paired_bound(q, kappa)
    if value_scale == "standardized":
        value = standardize(value)
    z = standardize(log_behavior)
    out = [v + (weight * s if weight else 0.0) for v, s in zip(value, z, strict=True)]
    usable = [
        all(math.isfinite(x) for x in (*(member[n] for member in q), log_behavior[n], value[n]))
        for n in range(len(out))
    ]
    if gain_kappa is not None:
        asked = asked_gains(q, log_behavior, least_gain, gain_per_nat)
        out = behind_the_first(out, q, gain_kappa, asked, usable, deciding)
    return [v if fine else -math.inf for v, fine in zip(out, usable, strict=True)]


def scores_by(
    selection: Any, unit: float, q: Sequence[Sequence[float]], log_behavior: Sequence[float]
) -> list[float]:
    """`scores` by selection settings, for critics with this `gain_unit`."""
    return scores(
        q,
        log_behavior,
        kappa=selection.kappa,
        weight=selection.support_weight,
        value_scale=selection.value_scale,
        bound=selection.bound,
        gain_kappa=selection.gain_kappa,
        least_gain=selection.least_gain * unit,
        gain_per_nat=selection.gain_per_nat * selection.support_weight * unit,
        deciding=selection.deciding_candidates,
    )


def behind_the_first(
    scores: Sequence[float],
    q: Sequence[Sequence[float]],
    kappa: float,
    asked: Sequence[float],
    usable: Sequence[bool],
    deciding: int | None = None,
) -> list[float]:
    """Candidates without a sure gain moved down, together, to behind the first finite one.

    All of them, where there are more than ``deciding`` and no such candidate is among the first so
    many that beats it.
    """
    gain = paired_bound(q, kappa, asked)
    first = first_finite(q) or 0
    finite = [v for v in scores if math.isfinite(v)]
    if not finite:
        return list(scores)
    gaining = [n for n in range(len(scores)) if gain[n] > 0 and math.isfinite(scores[n])]
    if deciding is not None and deciding < len(scores) and usable[first]:
        heard = [n for n in gaining if n < deciding and usable[n]]
        if not any(scores[n] > scores[first] for n in heard):
            gaining = []
    may = [v for n, v in enumerate(scores) if (n == first or n in gaining) and math.isfinite(v)]
    own = scores[first] if math.isfinite(scores[first]) else min(may, default=max(finite))
    fall = max(finite) - own + 1
    return [
        v if n == first or n in gaining or not math.isfinite(v) else v - fall
        for n, v in enumerate(scores)
    ]


def select(values: Sequence[float]) -> int:
    """The first best; 0 where none is finite."""
    best = 0
    for n, value in enumerate(values):
        if value > values[best]:
            best = n
    return best


# -- losses ------------------------------------------------------------------------------------


def expectile_loss(q: Any, value: Any, tau: float) -> float:
    """Sum over members of means over the batch of |tau - 1(q < v)| (q - v)^2."""
    total = 0.0
    for e in range(len(q)):
        terms = []
        for b in range(len(q[e])):
            error = q[e][b] - value[e][b]
            terms.append(abs(tau - (1.0 if error < 0 else 0.0)) * error**2)
        total += mean_of(terms)
    return total


def critic_loss(q: Any, rewards: Any, continues: Any, next_value: Any, discount: float) -> float:
    """Sum over members of means over the batch of (q - r - gamma c v')^2."""
    total = 0.0
    for e in range(len(q)):
        terms = []
        for b in range(len(rewards)):
            target = rewards[b] + discount * continues[b] * next_value[e][b]
            terms.append((q[e][b] - target) ** 2)
        total += mean_of(terms)
    return total


def advantage_weight(advantage: float, temperature: float, largest: float) -> float:
    return min(math.exp(min(advantage / temperature, 700.0)), largest)


def guided_em_loss(
    logits: Any, mean: Any, log_std: Any, actions: Any, weights: Any, floor: float
) -> float:
    """Mean over the batch of -w sum_k r_k [log alpha_k + log N_k], r floored and renormalized."""
    terms = []
    for b in range(len(actions)):
        joint = component_log_prob(logits[b], mean[b], log_std[b], actions[b])
        total = log_sum_exp(joint)
        shares = [max(math.exp(j - total), floor) for j in joint]
        whole = sum(shares)
        terms.append(-weights[b] * sum(s / whole * j for s, j in zip(shares, joint, strict=True)))
    return mean_of(terms)
