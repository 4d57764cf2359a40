"""The learner of `LookaheadCritics`: one step of the environment, for finished state values."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gem_policy.config import NetworkConfig
from gem_policy.critics import LookaheadCritics
from gem_policy.training.config import TrainConfig
from gem_policy.training.learners import CriticLearner, Metrics, Modules, ValueLearner
from gem_policy.training.replay import Batch, Replay

CONSTANT = 1e-6  # standard deviation of a normalized number's change below which it has none


class LookaheadLearner(CriticLearner):
    """Every member's step: changes and reward by squared error, going on by its log-likelihood.

    The values are those of the finished `ValueLearner`, and stay. Ends that ``terminal_reward``
    alone declares are not the environment's, and are not learned: the step goes on, and the values
    say what is best beyond (at a goal: to stay).
    """

    critics: LookaheadCritics
    reads = frozenset({"observations", "actions", "rewards", "next_observations", "lives"})

    def __init__(
        self,
        network: NetworkConfig,
        config: TrainConfig,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        super().__init__(network, config, generator, device)
        self.critics.values.requires_grad_(False)

    def parts(self) -> tuple[Modules, Modules]:
        """The step is trained; values and units are kept."""
        kept = {"values": self.critics.values, "units": self.critics.units}
        return {"step": self.critics.step}, kept

    @torch.no_grad()
    def begin(self, value: ValueLearner, training: Replay) -> None:
        """Take over the finished values, and the units of the data."""
        self.critics.values.load_state_dict(value.values.state_dict())
        units = self.critics.units
        change = training.rows[training.index + 1] - training.rows[training.index]
        spread = change.std(0, correction=0)
        units.change.copy_(torch.where(spread > CONSTANT, spread, 0.0))
        units.reward_mean.fill_(training.rewards.mean())
        units.reward_std.fill_(training.rewards.std(correction=0))
        units.advantage.fill_(training.unit)
        units.discount.fill_(self.config.discount)

    def loss(self, batch: Batch, told: bool = True) -> tuple[Tensor, Metrics]:
        """Mean over the batch, summed over members."""
        units = self.critics.units
        change, reward, logit = self.critics.predict_pairs(batch.observations, batch.actions)
        moved = _in_units(batch.next_observations - batch.observations, units.change)
        paid = _in_units(batch.rewards - units.reward_mean, units.reward_std)
        parts = {
            "change": (change - moved).square() / moved.shape[-1],
            "reward": (reward - paid).square(),
            "end": F.binary_cross_entropy_with_logits(
                logit, batch.lives.expand_as(logit), reduction="none"
            ),
        }
        losses = {name: part.sum() / len(batch.lives) for name, part in parts.items()}
        loss = losses["change"] + losses["reward"] + losses["end"]
        if not told:
            return loss, {}
        metrics = {f"critic/{name}_loss": part.detach() for name, part in losses.items()}
        return loss, {"critic/loss": loss.detach(), **metrics}


def _in_units(x: Tensor, unit: Tensor) -> Tensor:
    """``x / unit``, and 0 where the unit is: there is nothing to learn."""
    return torch.where(unit > 0, x / unit, 0.0)
