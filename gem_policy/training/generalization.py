"""What the models know of episodes that they did not learn from, and what follows from it.

With few episodes a behavior model knows every action by heart and gives new ones no density, and
critics know every transition and say nothing of new ones. Advantages then weigh transitions at
random, the support term holds a choice to nothing, and choosing makes a good actor a bad one
(measured: DESIGN.md). A cautious run takes note: it clones, and says so. Whole episodes may still
weigh by their returns, for which nothing has to be learned.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy.config import SelectionConfig
from gem_policy.critics import Critics
from gem_policy.errors import TrainingWarning
from gem_policy.networks import MixturePolicy
from gem_policy.training.advantages import weigh_both
from gem_policy.training.config import TrainConfig
from gem_policy.training.learners import BehaviorLearner, CriticLearner, Learner, expect
from gem_policy.training.replay import Batch, Replay
from gem_policy.training.validation import HELD_OUT_ROWS, evenly_spaced

SelectionChoice = SelectionConfig | Mapping[str, Any] | None

LEAST_KEPT = 0.5  # on held-out episodes, of the critics' rank correlation in training
LARGEST_GAP = 0.5  # nats per action dimension that the behavior model may lose on them


@dataclass(frozen=True)
class Known:
    """One number about the same model on two kinds of transitions; None where it is not defined."""

    training: float | None
    held_out: float | None


@dataclass(frozen=True)
class Generalization:
    """What the models know of transitions trained on, and of those of held-out episodes.

    Attributes:
        critics: Spearman's rank correlation of the members' mean with the advantages. Not the
            share of the variance explained: most of that is in the few transitions at which an
            episode fails, and it differs from training to training. Not defined where all
            advantages are the same.
        behavior: Mean log-likelihood of the actions, in nats per action dimension.
    """

    critics: Known
    behavior: Known

    @property
    def lacks(self) -> list[str]:
        """What is wrong, in words; nothing where the models generalize. The rules are ours."""
        found = []
        own, new = self.critics.training, self.critics.held_out
        enough = own is None or new is None or (new > 0 and new >= LEAST_KEPT * max(own, 0))
        if not enough:
            found.append(
                f"the critics' values have a rank correlation of {own:.2f} with the advantages in "
                f"training and of {new:.2f} on held-out episodes"
            )
        own, new = self.behavior.training, self.behavior.held_out
        if own is not None and new is not None and own - new > LARGEST_GAP:
            found.append(
                f"the behavior model gives the actions a log-density of {own:.1f} nats per "
                f"dimension in training and {new:.1f} on held-out episodes"
            )
        return found

    @property
    def enough(self) -> bool:
        """Whether advantages may weigh the data, and critics choose."""
        return not self.lacks

    def clones(self, config: TrainConfig) -> bool:
        """Whether a run with these settings leaves it at cloning."""
        return config.cautious and not self.enough

    def selection(self, config: TrainConfig, wanted: SelectionChoice = None) -> SelectionConfig:
        """All settings as wanted; else the defaults, of a clone the actor's mode, with changes."""
        if isinstance(wanted, SelectionConfig):
            return wanted
        known = SelectionConfig(candidates=1) if self.clones(config) else SelectionConfig()
        return known.replace(**(wanted or {}))


def measure(training: Replay, held_out: Replay, learners: Mapping[str, Learner]) -> Generalization:
    """Of finished behavior model and critics, on transitions whose advantages are in one unit."""
    own, new = (evenly_spaced(part, HELD_OUT_ROWS) for part in (training, held_out))
    critics = expect(learners["critic"], CriticLearner).critics
    behavior = expect(learners["behavior"], BehaviorLearner).model
    return Generalization(
        Known(rank_correlation(critics, own), rank_correlation(critics, new)),
        Known(log_likelihood(behavior, own), log_likelihood(behavior, new)),
    )


@torch.no_grad()
def rank_correlation(critics: Critics, batch: Batch) -> float | None:
    """Spearman's, of the members' mean with the advantages; 0 where the critics say nothing."""
    target = batch.advantages.mean(-1)
    if len(target) == 0 or bool((target == target[0]).all()):
        return None
    value = critics(batch.observations, batch.actions.unsqueeze(-2)).squeeze(-1).mean(0)
    found = torch.corrcoef(torch.stack([_ranks(value), _ranks(target)]))[0, 1]
    return float(torch.nan_to_num(found))


def _ranks(x: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Places in ascending order; equal numbers share the mean of theirs."""
    _, which, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = last - (counts - 1) / 2
    return ranks[which]


@torch.no_grad()
def log_likelihood(behavior: MixturePolicy, batch: Batch) -> float | None:
    """Mean log-density of the actions, in nats per action dimension."""
    if len(batch.actions) == 0:
        return None
    log_prob = behavior(batch.observations).log_prob(batch.actions.unsqueeze(-2))
    return float(log_prob.mean()) / batch.actions.shape[-1]


def is_behavior(training: Replay, known: Generalization, config: TrainConfig) -> bool:
    """Whether the actor is to be the behavior model itself: a clone of episodes that weigh alike.

    Args:
        training: What was trained on.
        known: Of its models.
        config: Of the run.
    """
    alike = bool((training.episode_weights == training.episode_weights[0]).all())
    return known.clones(config) and alike


def guide(
    training: Replay,
    held_out: Replay,
    known: Generalization,
    critic: CriticLearner,
    config: TrainConfig,
) -> tuple[Replay, Replay]:
    """The transitions with the actor's weights.

    In a cautious run that knows too little, their episodes' alone.
    """
    if known.clones(config):
        parts = training, held_out
        seen, unseen = (replace(part, weights=part.episode_weights) for part in parts)
        return seen, unseen
    return weigh_both(training, held_out, critic, config)


def warn_of_poor_generalization(found: Generalization, config: TrainConfig) -> None:
    """Give a `TrainingWarning` if the models know too little of held-out episodes."""
    if found.enough:
        return
    done = (
        "So the actor is a clone of the data, in which at most whole episodes have weights "
        "(episode_temperature), and the policy takes its mode (candidates=1) unless told "
        "otherwise; cautious=false weighs and chooses all the same."
        if config.cautious
        else "The actor was weighed by these critics all the same (cautious=false)."
    )
    warnings.warn(
        f"Too little is known of episodes that were not trained on: {'; '.join(found.lacks)}. "
        f"{done} More episodes help.",
        TrainingWarning,
        stacklevel=2,
    )
