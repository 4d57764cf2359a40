"""The checkpoint of finished learners: everything that deployment needs, and where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gem_policy.checkpoint import CALIBRATION_POINTS, Checkpoint, PolicyConfig
from gem_policy.config import NetworkConfig, SelectionConfig
from gem_policy.training.advantages import judge_both
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.episodes import effective_number
from gem_policy.training.gain_unit import ROWS as UNIT_ROWS
from gem_policy.training.gain_unit import gain_unit
from gem_policy.training.generalization import (
    Generalization,
    SelectionChoice,
    is_behavior,
    measure,
    warn_of_poor_generalization,
)
from gem_policy.training.learners import (
    ActorLearner,
    BehaviorLearner,
    CriticLearner,
    Learner,
    ValueLearner,
    expect,
)
from gem_policy.training.preparation import Prepared
from gem_policy.training.provenance import describe, finite
from gem_policy.training.replay import Replay
from gem_policy.training.spread import critic_spread, warn_of_small_spread
from gem_policy.training.validation import evenly_spaced, held_out_batch

ROWS = 8192  # transitions evaluated at once


def provenance_of(dataset: Dataset, prepared: Prepared, config: TrainConfig) -> dict[str, Any]:
    """What is known of a policy before it is trained."""
    rewards = asdict(prepared.scale)
    return {**describe(dataset, config), "rewards": rewards, **episodes_of(prepared)}


def episodes_of(prepared: Prepared) -> dict[str, Any]:
    """What the weights of whole episodes, taken alone, leave of the transitions."""
    count = effective_number(prepared.training.episode_weights)
    return {"episode_weights": {"effective_transitions": count}}


def finish(
    dataset: Dataset,
    prepared: Prepared,
    learners: Mapping[str, Learner],
    net: NetworkConfig,
    selection: SelectionChoice,
    config: TrainConfig,
) -> Checkpoint:
    """The checkpoint of finished learners, with what the data say of its models.

    Where a cautious run is to be a mere clone, the actor's learner takes over the behavior model.

    Args:
        dataset: What was trained on.
        prepared: The same, prepared.
        learners: Of all phases, by name.
        net: The networks' sizes.
        selection: Settings to deploy with, or changes to the `Generalization`'s.
        config: Training settings.

    Warns:
        TrainingWarning: The critics agree too well off the data, or critics or behavior model know
            too little of held-out episodes.
    """
    known, held_out = what_is_known(prepared, learners, config)
    if is_behavior(prepared.training, known, config):
        behavior = expect(learners["behavior"], BehaviorLearner)
        expect(learners["actor"], ActorLearner).become(behavior.model)
    critics = expect(learners["critic"], CriticLearner).critics
    spread = critic_spread(critics, held_out_batch(held_out), config.seed)
    warn_of_small_spread(spread)
    warn_of_poor_generalization(known, config)
    measured = finite({"critic_spread": spread, "generalization": asdict(known)})
    provenance = {**provenance_of(dataset, prepared, config), **measured}
    chosen = known.selection(config, selection)
    return export(dataset, prepared, learners, net, chosen, provenance)


def what_is_known(
    prepared: Prepared, learners: Mapping[str, Learner], config: TrainConfig
) -> tuple[Generalization, Replay]:
    """How finished models generalize, and the held-out transitions, judged."""
    value = expect(learners["value"], ValueLearner)
    training, held_out = judge_both(prepared.training, prepared.held_out, value, config)
    return measure(training, held_out, learners), held_out


@torch.no_grad()
def calibrate(behavior: torch.nn.Module, replay: Replay) -> Float[Tensor, f" {CALIBRATION_POINTS}"]:
    """Quantiles 0, 0.1, ..., 100 % of log beta on held-out actions of the dataset."""
    parts = [
        behavior(replay.rows[index]).log_prob(actions.unsqueeze(-2)).squeeze(-1)
        for index, actions in zip(
            torch.split(replay.index, ROWS), torch.split(replay.actions, ROWS), strict=True
        )
    ]
    levels = torch.linspace(0, 1, CALIBRATION_POINTS, dtype=torch.float64)
    ordered = torch.cat(parts).double().cpu().sort().values
    place = levels * (ordered.shape[0] - 1)
    low = ordered[place.floor().long()]
    high = ordered[place.ceil().long()]
    # Rounded only now, and made monotone: interpolation may fall by one unit in the last place.
    return torch.cummax((low + (high - low) * place.frac()).float(), 0).values


def export(
    dataset: Dataset,
    prepared: Prepared,
    learners: Mapping[str, Learner],
    net: NetworkConfig,
    selection: SelectionConfig,
    provenance: Mapping[str, Any],
) -> Checkpoint:
    """The deployed policy: actor, behavior model, critics, statistics, calibration, units."""
    critics = expect(learners["critic"], CriticLearner).critics
    modules: dict[str, nn.Module] = {
        "behavior": expect(learners["behavior"], BehaviorLearner).model,
        "critic": critics,
        "actor": expect(learners["actor"], ActorLearner).model,
    }
    tensors = {
        f"{name}.{key}": value.detach()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    tensors |= {
        "observation.mean": prepared.normalizer.mean,
        "observation.std": prepared.normalizer.std,
        "action.low": prepared.scaler.low,
        "action.high": prepared.scaler.high,
        "calibration.log_behavior": calibrate(modules["behavior"], prepared.held_out),
    }
    unit = gain_unit(critics, evenly_spaced(prepared.training, UNIT_ROWS))
    config = PolicyConfig(net, selection, dataset.observation_space, dataset.action_space, unit)
    # Copies: training goes on with its own, and a caller may keep them, or change them.
    return Checkpoint(config, {k: v.clone() for k, v in tensors.items()}, provenance)
