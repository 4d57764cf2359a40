"""Weights of whole episodes by their returns: what one step's advantage does not see.

State values look some hundred steps ahead, and the better of two agents is in states of its own
before that: a one-step advantage hardly tells in the states that both come through, such as an
episode's first, whose action is the better agent's. The episode's return does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gem_policy.training.losses import advantage_weights
from gem_policy.training.transitions import Transitions

LEAST_TRANSITIONS = 10_000.0  # effective number that the weights of a run leave
WARMER = 2**0.25  # factor on a temperature that leaves fewer
LIMIT_SHARE = 0.05  # of the episodes that did not terminate: what a time limit cuts at least
ROUNDING = 1e-6  # of float32 rewards, in a return: what is smaller is no difference
PENALTIES = tuple(10.0**k for k in range(-3, 4))  # of the ridge regression


@dataclass(frozen=True)
class StartBaseline:
    """What an episode's return is expected to be, by a linear function of how it starts.

    A task that starts far from its goal has lower returns whoever acts. The penalty is the one with
    the smallest leave-one-out error, if that is smaller than the mean's by more than a standard
    error; else it is infinite, which leaves the mean: with few episodes a slope is soon found.

    Attributes:
        center: Mean of the starts.
        slope: Return per unit of a start.
        level: Mean of the returns.
    """

    center: Float[Tensor, " obs"]
    slope: Float[Tensor, " obs"]
    level: Float[Tensor, ""]

    def __call__(self, starts: Float[Tensor, "episodes obs"]) -> Float[Tensor, " episodes"]:
        """The expected returns of other episodes, float64."""
        return self.level + (starts.double() - self.center) @ self.slope


def fit_baseline(
    starts: Float[Tensor, "episodes obs"], returns: Float[Tensor, " episodes"]
) -> tuple[StartBaseline, Float[Tensor, " episodes"]]:
    """The baseline, and each episode's return less what the others' baseline expects of it.

    Ridge regression on starts in standard deviations, its leave-one-out errors in closed form:
    ``residual / (1 - leverage)``.
    """
    x, y = starts.double(), returns.double()
    center, level, count = x.mean(0), y.mean(), len(y)
    spread = x.std(0, correction=0)
    scale = torch.where(spread > 0, spread, 1.0)
    u, s, v = torch.linalg.svd((x - center) / scale, full_matrices=False)
    along = u.T @ (y - level)

    def fit(penalty: float) -> tuple[Tensor, Tensor]:
        """Slope and leave-one-out errors."""
        damped = s.square() + penalty * count
        kept = s.square() / damped
        leverage = (1 / count + u.square() @ kept).clamp(max=1 - 1e-9)
        errors = (y - level - u @ (kept * along)) / (1 - leverage)
        return v.T @ (s / damped * along) / scale, errors

    slope, at_mean = fit(float("inf"))
    errors = at_mean
    for penalty in PENALTIES:
        other, left_out = fit(penalty)
        gain = at_mean.square() - left_out.square()
        better = float(left_out.square().mean()) < float(errors.square().mean())
        if better and float(gain.mean()) > float(gain.std()) / count**0.5:
            slope, errors = other, left_out
    return StartBaseline(center, slope, level), errors


def episode_weights(
    training: Transitions,
    held_out: Transitions,
    temperature: float | None,
    weight_max: float,
    least: float,
    factor: float = 1.0,
    shift: float = 0.0,
) -> tuple[Float[Tensor, " transitions"], Float[Tensor, " held_out"]]:
    """Weight of every transition by the return of its episode, the same throughout the episode.

    ``min(exp(z / T), w_max)``, z the undiscounted return less a baseline of the first observation
    (`fit_baseline`), in its standard deviations over the training episodes; held-out episodes are
    told by the same baseline and deviation. An episode that was cut before it came to its end has z
    = 0, as nobody knows what it would have come to; see `_whole`. The weights of Hong et al. (arXiv
    2306.13085), who sample by them; the baseline and where they apply are our choices.

    Args:
        training: Of the episodes to train on.
        held_out: Of the others.
        temperature: T; None: all weights are 1.
        weight_max: The largest weight.
        least: Where the temperature would leave fewer effective transitions, ``(sum w)^2 / sum
            w^2``, a larger one is taken: of few demonstrations all are needed.
        factor: On every reward.
        shift: Added to every reward.

    Returns:
        The weights of both. All are 1 where all returns are the same, where there are no more than
        ``least`` transitions to train on, and where every episode is a single step: its return is
        the transition's own advantage, which weighs it already.
    """
    parts = training, held_out
    ones = [torch.ones_like(part.rewards) for part in parts]
    few = len(training) <= least
    if temperature is None or few or int(training.lengths.max()) == 1:
        return ones[0], ones[1]
    starts = [_starts(part) for part in parts]
    returns = [part.returns * factor + part.lengths * shift for part in parts]
    whole = _whole(*parts)
    if int(whole[0].sum()) < 2:
        return ones[0], ones[1]
    baseline, own = fit_baseline(starts[0][whole[0]], returns[0][whole[0]])
    unit = own.std(correction=0)
    if not float(unit) > ROUNDING * float(returns[0].abs().max()):
        return ones[0], ones[1]
    above = [torch.zeros_like(part) for part in returns]
    above[0][whole[0]] = own
    above[1][whole[1]] = (returns[1] - baseline(starts[1]))[whole[1]]
    while True:
        found = [
            advantage_weights(z / unit, temperature, weight_max).float()[part.episode]
            for z, part in zip(above, parts, strict=True)
        ]
        if effective_number(found[0]) >= least:
            return found[0], found[1]
        temperature *= WARMER


def effective_number(weights: Float[Tensor, " transitions"]) -> float:
    """How many transitions of equal weight would average as well: ``(sum w)^2 / sum w^2``."""
    wide = weights.double()
    return float(wide.sum().square() / wide.square().sum())


def _starts(data: Transitions) -> Float[Tensor, "episodes obs"]:
    """First observation of every episode."""
    return data.observations[torch.cumsum(data.lengths + 1, 0) - data.lengths - 1]


def _whole(*parts: Transitions) -> list[Bool[Tensor, " episodes"]]:
    """Which episodes came to their end: they terminated, or went on until a time limit.

    One is a length that a share of the others have, or the longest of all.
    """
    ended = [part.terminated[torch.cumsum(part.lengths, 0) - 1] for part in parts]
    cut = torch.cat([part.lengths[~end] for part, end in zip(parts, ended, strict=True)])
    lengths, counts = torch.unique(cut, return_counts=True)
    common = (counts > 1) & (counts >= LIMIT_SHARE * len(cut))
    common |= lengths == torch.cat([part.lengths for part in parts]).max()
    limits = lengths[common]
    return [end | torch.isin(part.lengths, limits) for part, end in zip(parts, ended, strict=True)]
