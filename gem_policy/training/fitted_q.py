"""What a policy would earn, estimated from data alone: fitted Q evaluation of its selections.

FQE (Le et al., arXiv 1903.08738): a critic is fitted to ``r + gamma Q(s', pi(s'))`` on recorded
transitions, where pi is the *selected* policy, reranking and all; its value at the starts of
held-out episodes is the estimate. Several selections are fitted side by side, from the same
initial weights and on the same batches, so that their differences are less noisy than their
values (our choice).

The critics of the checkpoint are not asked: a selection that exploits their errors must not be
judged by them.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from gem_policy.candidates import CandidateSet
from gem_policy.config import SelectionConfig, from_mapping
from gem_policy.env_specs import read_spec
from gem_policy.errors import ConfigError, SpaceError, TrainingError, TrainingWarning
from gem_policy.evaluate import Interval
from gem_policy.policy import GEMPolicy
from gem_policy.scoring import rule_of
from gem_policy.selection import select, usable_scores
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.fitted_q_learner import (
    FittedQConfig,
    FittedQLearner,
    FollowedBatches,
    build_learner,
)
from gem_policy.training.preparation import split
from gem_policy.training.replay import Sampler
from gem_policy.training.reward_scale import reward_factor
from gem_policy.training.transitions import Transitions

ROWS = 256  # observations decided at once: at N = 256 their candidates take 300 MB already
PHASE = 100  # of the sampler's streams; the training's phases are the first few
LATE = 0.9  # of the updates: what the estimate moves after it tells whether it has settled


@dataclass(frozen=True)
class Estimate:
    """What one selection would earn from the starts of the held-out episodes.

    Attributes:
        selection: The settings.
        values: Estimated discounted return at every start, in scaled and shifted reward.
        spread: Standard deviation over the members of their means over the starts.
        drift: How far the mean moved over the last tenth of the updates; where it is not small
            against the differences of interest, fit longer.
    """

    selection: SelectionConfig
    values: NDArray[np.float64]
    spread: float
    drift: float

    @property
    def value(self) -> Interval:
        """Mean over the starts with its bootstrap interval, which knows nothing of the fit."""
        return Interval.of(self.values.tolist())

    def to_dict(self) -> dict[str, Any]:
        """Plain data: settings, mean with interval, spread and drift."""
        return {
            "selection": asdict(self.selection),
            "value": asdict(self.value),
            "starts": len(self.values),
            "spread": self.spread,
            "drift": self.drift,
        }


def estimate(
    policy: GEMPolicy,
    dataset: Dataset,
    selections: Sequence[SelectionConfig],
    config: FittedQConfig | None = None,
    *,
    train: TrainConfig | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Estimate]:
    """Estimate the discounted return of a policy for several selections, without its environment.

    Critics are fitted on episodes of the training part and asked at the starts of the held-out
    ones, split as the policy's own training split the dataset. Data that the policy was trained on
    flatter it where they are noisy; give a dataset of other episodes to be strict.

    Args:
        policy: Whose actor, critics and behavior model decide. Its own settings are left alone.
        dataset: What to fit on.
        selections: Settings to compare; the deterministic choice of each.
        config: Settings of the estimate.
        train: Discount, reward scale, shift and terminal reward that define the return, and the
            split; None for those that the checkpoint was trained with.
        progress: Called with what is being done, how much of it is, and of how much.

    Returns:
        One estimate per selection, in the same order.

    Warns:
        TrainingWarning: The data come from another environment than the policy's, or have one
            held-out start.

    Raises:
        ConfigError: No selection, or no training settings here nor in the checkpoint.
        TrainingError: The dataset is not one that the policy can act on, or the fit diverged.
    """
    config = config or FittedQConfig()
    factor = policy.provenance.get("rewards", {}).get("factor") if train is None else None
    train = train or _settings(policy)
    factor = reward_factor(dataset, train) if factor is None else factor
    if not selections:
        raise ConfigError("`selections` must hold one SelectionConfig at least, got none.")
    sizes = (dataset.transitions.observations.shape[-1], dataset.transitions.actions.shape[-1])
    network = policy.config.network
    if sizes != (network.observation_size, network.action_size):
        raise TrainingError(
            f"{dataset.id} has observations and actions of lengths {sizes}, the policy was made "
            f"for {(network.observation_size, network.action_size)}. Give a dataset of its task."
        )
    own, other = policy.action_space, dataset.action_space
    if not (np.allclose(own.low, other.low) and np.allclose(own.high, other.high)):
        raise TrainingError(
            f"{dataset.id} has actions in {other}, the policy acts in {own}: the same numbers mean "
            "other actions. Give a dataset recorded with the policy's own action space."
        )
    _warn_of_another_task(policy, dataset)
    tell = progress or (lambda what, done, total: None)
    training, held_out = split(dataset, train.holdout, train.seed)
    data = _some_episodes(training.transitions, config)
    starts = _start_rows(held_out.transitions)
    if len(starts) < 2:
        warnings.warn(
            f"{dataset.id} has one held-out episode, so one start: the interval of the estimate is "
            "a point, and says nothing. Give a TrainConfig of larger `holdout`, or more episodes.",
            TrainingWarning,
            stacklevel=2,
        )
    whole = torch.cat((data.observations, starts))

    actions = chosen_actions(
        policy, whole, selections, lambda done: tell("deciding", done, len(whole))
    )
    at_rows, at_starts = torch.split(actions, [len(data.observations), len(starts)], 1)
    batches = FollowedBatches(policy, data, at_rows, train, factor)
    learner = build_learner(policy, batches, data, len(selections), config, train)
    sampler = Sampler(len(data), config.batch_size, config.seed, PHASE, policy.device)
    normalized = policy.normalizer.apply(starts.to(policy.device))
    late: Tensor | None = None
    while learner.step < learner.updates:
        learner.update(batches(sampler(learner.step)))
        if late is None and learner.step >= LATE * learner.updates:
            late = _at_starts(learner, normalized, at_starts)
        tell("fitting", learner.step, learner.updates)
    found = _at_starts(learner, normalized, at_starts)
    if not bool(torch.isfinite(found).all()):
        raise TrainingError(
            "The fitted values became NaN or infinite. Lower the learning rate, and look for "
            "extreme values in the data with `gem-policy doctor`."
        )
    before = found if late is None else late
    return [
        Estimate(
            selection,
            found[i].mean(0).double().cpu().numpy(),
            float(found[i].mean(-1).std(correction=0)),
            float((found[i].mean() - before[i].mean()).abs()),
        )
        for i, selection in enumerate(selections)
    ]


@torch.no_grad()
def chosen_actions(
    policy: GEMPolicy,
    observations: Float[Tensor, "rows obs"],
    selections: Sequence[SelectionConfig],
    progress: Callable[[int], None] | None = None,
) -> Float[Tensor, "selections rows action"]:
    """What `decide` would take with each of the settings, in normalized units.

    Candidates are made and valued once, for the largest budget: a smaller one is their beginning.

    Args:
        policy: Its own settings are left alone.
        observations: In environment units.
        selections: Settings that may differ in everything but how candidates are drawn.
        progress: Called with the number of observations done.

    Raises:
        ConfigError: `proposal_scale` or `all_modes` differ: the candidates would not be the same.
    """
    ways = {(s.proposal_scale, s.all_modes) for s in selections}
    if len(ways) != 1:
        raise ConfigError(
            f"`selections` must draw candidates in one way, got (proposal_scale, all_modes) in "
            f"{sorted(ways)}. Estimate them one after the other."
        )
    own, most = policy.selection, max(s.candidates for s in selections)
    size = policy.config.network.action_size
    out = torch.empty(len(selections), len(observations), size, device=policy.device)
    first = 0
    try:
        policy.selection = selections[0]
        for rows in torch.split(observations, ROWS):
            normalized = policy.normalizer.apply(rows.to(policy.device, torch.float32))
            whole = policy.candidates(normalized, most)
            for i, selection in enumerate(selections):
                some = CandidateSet(
                    whole.actions[:, : selection.candidates],
                    whole.component[:, : selection.candidates],
                    whole.q[..., : selection.candidates],
                    whole.log_behavior[:, : selection.candidates],
                )
                index = select(
                    usable_scores(some, rule_of(selection, policy.config.gain_unit)(some))
                )
                place = torch.arange(len(rows), device=policy.device)
                out[i, first : first + len(rows)] = whole.actions[place, index]
            first += len(rows)
            if progress is not None:
                progress(first)
    finally:
        policy.selection = own
    return out


def _settings(policy: GEMPolicy) -> TrainConfig:
    """The training settings that a checkpoint holds."""
    train = policy.provenance.get("train")
    if not train:
        raise ConfigError(
            "The checkpoint does not say how it was trained, so there is no return to estimate. "
            "Give `train`, a TrainConfig with its discount and its scale of the rewards."
        )
    return from_mapping(TrainConfig, dict(train), "train")


def _warn_of_another_task(policy: GEMPolicy, dataset: Dataset) -> None:
    """Warn where the data come from another environment than the policy's, as far as both say."""
    own, other = policy.provenance.get("env_spec"), dataset.env_spec
    if own is None or other is None:
        return
    with contextlib.suppress(SpaceError):  # nothing is known of what cannot be read
        first, second = read_spec(own), read_spec(other)
        differ = ["id"] if first.id != second.id else []
        differ += [
            key
            for key in sorted({*first.kwargs, *second.kwargs} - {"render_mode"})
            if json.dumps(first.kwargs.get(key)) != json.dumps(second.kwargs.get(key))
        ]
        if differ:
            warnings.warn(
                f"{dataset.id} comes from another environment than the policy's data: {differ} "
                f"differ ({second.id}, {first.id}). The estimate is of the policy in data that it "
                "was not made for.",
                TrainingWarning,
                stacklevel=3,
            )


def _some_episodes(data: Transitions, config: FittedQConfig) -> Transitions:
    """Whole episodes in random order, as many as the wanted number of steps holds."""
    order = torch.from_numpy(np.random.default_rng(config.seed).permutation(data.episodes))
    steps = torch.cumsum(data.lengths.cpu()[order], 0)
    count = max(int((steps <= config.transitions).sum()), 1)
    return data.select(order[:count])


def _start_rows(data: Transitions) -> Float[Tensor, "episodes obs"]:
    """The first observation of every episode."""
    steps = torch.cumsum(data.lengths, 0) - data.lengths
    return data.observations[steps + torch.arange(data.episodes, device=steps.device)]


@torch.no_grad()
def _at_starts(
    learner: FittedQLearner,
    observations: Float[Tensor, "starts obs"],
    actions: Float[Tensor, "selections starts action"],
) -> Float[Tensor, "selections members starts"]:
    """Values of every selection's own action, by each of its members."""
    found = learner.value(observations, actions)
    return found.reshape(len(actions), -1, found.shape[-1])


def grid(
    own: SelectionConfig,
    candidates: Sequence[int],
    kappas: Sequence[float],
    support_weights: Sequence[float],
) -> list[SelectionConfig]:
    """Every combination of settings; an empty list stands for the policy's own.

    One candidate is the actor's mode whatever kappa and lambda are: it is there once.
    """
    out: list[SelectionConfig] = []
    for kappa in kappas or [own.kappa]:
        for weight in support_weights or [own.support_weight]:
            for count in candidates or [own.candidates]:
                made = replace(own, candidates=count, kappa=kappa, support_weight=weight)
                if count > 1 or not any(s.candidates == 1 for s in out):
                    out.append(made)
    return out
