"""How many ways of acting the data shows in one place, and how much of the space it visits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy.training.doctor.evidence import Evidence
from gem_policy.training.doctor.report import Finding

COMPONENTS = 5
PLACES = 128  # states around which actions are compared
NEIGHBORS = 256  # actions in each place, half of them held out
SAMPLE = 40_000
SWEEPS = 40
MIN_VARIANCE = 1e-2  # of actions scaled to variance 1: a spike at a bound is no reward in itself


def check_modes(evidence: Evidence) -> Iterator[Finding]:
    """Compare mixtures of 5 Gaussians with one, on held-out actions of neighboring states."""
    gain = multimodality(evidence)
    if gain is None:
        return
    means = "several ways" if gain > 0.1 else "about one way"
    yield Finding(
        "multimodality",
        "note",
        f"In similar states, {COMPONENTS} Gaussians fit held-out actions {gain:+.2f} nats per "
        f"action dimension better than one: the data shows {means} of acting there.",
        "A policy with one mode would average over them: use several components."
        if gain > 0.1
        else "",
    )


def check_coverage(evidence: Evidence) -> Iterator[Finding]:
    """Whether states that one episode visits are visited by others, too."""
    if len(evidence.lengths) < 2 or evidence.steps < NEIGHBORS:
        return
    chosen = evidence.sample(SAMPLE)
    states = _standardized(evidence, chosen)
    episode = torch.from_numpy(evidence.episode[chosen])
    probes = torch.linspace(0, len(states) - 1, PLACES).long()
    distance = torch.cdist(states[probes], states)
    distance[episode[probes][:, None] == episode[None, :]] = torch.inf
    nearest = distance.amin(dim=1) / math.sqrt(states.shape[1])
    lonely = float((nearest > 0.5).float().mean())
    median = float(nearest.median())
    yield Finding(
        "coverage",
        "warning" if lonely > 0.5 else "note",
        f"From a state to the nearest one of another episode it is {median:.2f} standard "
        f"deviations (median); {lonely:.0%} of the states have none within 0.5.",
        "Most states were seen in one episode only: values there are extrapolated. More data, or "
        "a larger support weight."
        if lonely > 0.5
        else "",
    )


def multimodality(evidence: Evidence) -> float | None:
    """Gain in held-out log-likelihood of several Gaussians over one, in nats per dimension.

    None when the dataset is too small to say.
    """
    if evidence.steps < 4 * NEIGHBORS:
        return None
    chosen = evidence.sample(SAMPLE)
    states = _standardized(evidence, chosen)
    actions = torch.from_numpy(np.nan_to_num(evidence.actions[chosen]))
    spread = actions.std(dim=0)
    if not bool((spread > 0).any()):
        return None
    actions = (actions / spread.clamp(min=1e-8))[:, spread > 0]
    generator = torch.Generator().manual_seed(0)
    places = torch.randperm(len(states), generator=generator)[:PLACES]
    near = torch.cdist(states[places], states).topk(NEIGHBORS, largest=False).indices
    near = near[:, torch.randperm(NEIGHBORS, generator=generator)]
    train, test = actions[near].chunk(2, dim=1)
    several = _fit(train, COMPONENTS, generator)
    one = _fit(train, 1, generator)
    gain = (_log_density(test, *several) - _log_density(test, *one)).mean(dim=1)
    return float(gain.median()) / actions.shape[1]


def _standardized(evidence: Evidence, chosen: np.ndarray) -> Float[Tensor, "states obs"]:
    states = torch.from_numpy(
        np.nan_to_num(evidence.observations[evidence.row[chosen]], posinf=0.0, neginf=0.0)
    )
    spread = states.std(dim=0)
    moving = spread > 1e-6
    if not bool(moving.any()):
        return states
    return ((states - states.mean(dim=0)) / spread.clamp(min=1e-6))[:, moving]


Mixture = tuple[
    Float[Tensor, "places k"], Float[Tensor, "places k action"], Float[Tensor, "places k action"]
]


def _fit(
    points: Float[Tensor, "places points action"], components: int, generator: torch.Generator
) -> Mixture:
    """Expectation-maximization for diagonal Gaussians, in every place at once."""
    count = points.shape[1]
    start = torch.randperm(count, generator=generator)[:components]
    mean = points[:, start] if components > 1 else points.mean(dim=1, keepdim=True)
    variance = points.var(dim=1, keepdim=True).expand_as(mean).clamp(min=MIN_VARIANCE)
    weight = torch.full(mean.shape[:2], 1.0 / components).log()
    for _ in range(SWEEPS if components > 1 else 1):
        share = torch.softmax(_joint(points, weight, mean, variance), dim=-1)
        total = share.sum(dim=1) + 1e-3
        mean = torch.einsum("bnk,bna->bka", share, points) / total[..., None]
        square = torch.einsum("bnk,bna->bka", share, points**2) / total[..., None]
        variance = (square - mean**2).clamp(min=MIN_VARIANCE)
        weight = (total / total.sum(dim=-1, keepdim=True)).log()
    return weight, mean, variance


def _joint(
    points: Float[Tensor, "places points action"],
    weight: Float[Tensor, "places k"],
    mean: Float[Tensor, "places k action"],
    variance: Float[Tensor, "places k action"],
) -> Float[Tensor, "places points k"]:
    offset = points[:, :, None] - mean[:, None]
    quadratic = (offset**2 / variance[:, None]).sum(dim=-1)
    norm = (variance.log() + math.log(2 * math.pi)).sum(dim=-1)
    return weight[:, None] - 0.5 * (quadratic + norm[:, None])


def _log_density(
    points: Float[Tensor, "places points action"],
    weight: Float[Tensor, "places k"],
    mean: Float[Tensor, "places k action"],
    variance: Float[Tensor, "places k action"],
) -> Float[Tensor, "places points"]:
    return torch.logsumexp(_joint(points, weight, mean, variance), dim=-1)
