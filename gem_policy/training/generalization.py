"""Whether the critics know anything of episodes that they did not learn from.

With little data the critics know every transition by heart and say nothing of new ones; choosing
by them is then worse than the actor alone, whatever the selection settings. The reverse does not
hold: most of an advantage's variance can be the state's, and a choice is between actions of one
state (HalfCheetah, DESIGN.md).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from gem_policy.config import SelectionConfig
from gem_policy.errors import TrainingWarning
from gem_policy.networks import CriticEnsemble
from gem_policy.training.replay import Batch

ENOUGH = 0.5  # of what is explained in training, to be explained on held-out episodes


@dataclass(frozen=True)
class Generalization:
    """Share of the advantages' variance that the mean of the members explains (R squared).

    Attributes:
        training: On transitions trained on; None where all their advantages are the same.
        held_out: On transitions of held-out episodes; None likewise. Below 0 a constant is better.
    """

    training: float | None
    held_out: float | None

    @property
    def enough(self) -> bool:
        """Whether candidates should be chosen by these critics: our rule, DESIGN.md has why."""
        if self.training is None or self.held_out is None:
            return True
        return self.held_out >= ENOUGH * max(self.training, 0.0) and self.held_out > 0

    @property
    def selection(self) -> SelectionConfig:
        """Settings where nobody chose any: the actor's mode if not enough."""
        return SelectionConfig() if self.enough else SelectionConfig(candidates=1)


def generalization(critics: CriticEnsemble, training: Batch, held_out: Batch) -> Generalization:
    """Measure it on two batches whose advantages are in one unit."""
    return Generalization(_explained(critics, training), _explained(critics, held_out))


@torch.no_grad()
def _explained(critics: CriticEnsemble, batch: Batch) -> float | None:
    target = batch.advantages.mean(-1)
    if len(target) == 0 or bool((target == target[0]).all()):
        return None
    value = critics(batch.observations, batch.actions.unsqueeze(-2)).squeeze(-1).mean(0)
    error = (value - target).square().mean()
    return float(1 - error / target.var(correction=0))


def warn_of_poor_generalization(found: Generalization) -> None:
    """Give a `TrainingWarning` if the critics know too little to choose by."""
    if not found.enough:
        warnings.warn(
            f"The critics explain {found.training:.2f} of the advantages' variance in training and "
            f"{found.held_out:.2f} on held-out episodes: too little to choose actions by. The "
            "policy takes the actor's mode (candidates=1) unless told otherwise. More episodes "
            "help, or fewer critic_updates.",
            TrainingWarning,
            stacklevel=2,
        )
