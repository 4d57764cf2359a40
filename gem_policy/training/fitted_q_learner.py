"""The learner of fitted Q evaluation: critics of several selections, fitted side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gem_policy.config import require, require_count, require_number
from gem_policy.networks import CriticEnsemble
from gem_policy.policy import GEMPolicy
from gem_policy.training.config import TrainConfig
from gem_policy.training.learners import Learner, Metrics
from gem_policy.training.transitions import Transitions


@dataclass(frozen=True)
class FittedQConfig:
    """Settings of the estimate. All defaults are our choices.

    Attributes:
        updates: Updates of the critics.
        batch_size: Transitions per update.
        learning_rate: Of Adam; falls to 0 along a cosine.
        target_rate: Step of the target critics' moving average. Rewards travel back about
            ``updates * target_rate`` steps: it must be more than the task is long.
        members: Critics per selection; their spread is reported.
        hidden: Widths of their hidden layers.
        transitions: Steps to fit on, in whole episodes drawn from the training part; the cost of
            deciding grows with it.
        seed: Of the initial weights, the batches and the draw of episodes.
    """

    updates: int = 5000
    batch_size: int = 256
    learning_rate: float = 1e-3
    target_rate: float = 0.05
    members: int = 2
    hidden: tuple[int, ...] = (128, 128)
    transitions: int = 50_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("updates", "batch_size", "members", "transitions"):
            require_count(name, getattr(self, name))
        require_count("seed", self.seed, 0, 2**24 - 1)
        require_number("learning_rate", self.learning_rate, "a number in (0, 1]", 1e-12, 1)
        require_number("target_rate", self.target_rate, "a number in (0, 1]", 1e-12, 1)
        fine = isinstance(self.hidden, tuple) and len(self.hidden) > 0
        require(fine, "hidden", self.hidden, "a non-empty tuple of layer widths")
        for width in self.hidden:
            require_count("hidden", width)


@dataclass(frozen=True)
class FollowedBatch:
    """Transitions in normalized units, with what each selection does next."""

    observations: Float[Tensor, "batch obs"]
    actions: Float[Tensor, "batch action"]
    rewards: Float[Tensor, " batch"]
    continues: Float[Tensor, " batch"]
    next_observations: Float[Tensor, "batch obs"]
    next_actions: Float[Tensor, "selections batch action"]


class FittedQLearner(Learner):
    """Critics of S selections with M members each, in units of ``scale`` around ``center``.

    Member ``s * M + m`` belongs to selection s and starts from the weights of member m of every
    other selection.

    Args:
        critics: S * M members.
        selections: S.
        config: Settings.
        discount: gamma.
        center: Value that an output of 0 stands for: the mean of the data's own returns.
        scale: Value of an output of 1: their standard deviation.
        bounds: Least and largest possible return; targets are clipped to them.
    """

    def __init__(
        self,
        critics: CriticEnsemble,
        selections: int,
        config: FittedQConfig,
        discount: float,
        center: float,
        scale: float,
        bounds: tuple[float, float],
    ) -> None:
        self.critics, self.selections, self.config = critics, selections, config
        self.discount, self.center, self.scale, self.bounds = discount, center, scale, bounds
        self.target = [parameter.detach().clone() for parameter in critics.parameters()]
        super().__init__({"q": critics}, config.learning_rate, config.updates)

    def loss(self, batch: Any, told: bool = True) -> tuple[Tensor, Metrics]:
        """Squared temporal-difference error of a `FollowedBatch`, summed over members."""
        with torch.no_grad():
            after = self.value(batch.next_observations, batch.next_actions, self.target)
            target = (batch.rewards + self.discount * batch.continues * after).clamp(*self.bounds)
            target = (target - self.center) / self.scale
        q = self.critics(batch.observations, batch.actions.unsqueeze(-2)).squeeze(-1)
        loss = (q - target).square().mean(-1).sum()
        return loss, {"fitted_q/loss": loss.detach()}

    def apply(self, batch: Any, told: bool = True) -> Metrics:
        """One Adam step, after which the targets move a little towards the critics."""
        metrics = super().apply(batch, told)
        with torch.no_grad():
            torch._foreach_lerp_(
                self.target, [p.detach() for p in self.parameters], self.config.target_rate
            )
        return metrics

    def value(
        self,
        observations: Float[Tensor, "batch obs"],
        actions: Float[Tensor, "selections batch action"],
        weights: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, "members batch"]:
        """Every member's value of its own selection's actions, in (scaled) reward.

        Args:
            observations: Normalized.
            actions: Normalized, of every selection.
            weights: In the order of the critics' parameters; None for their own.
        """
        given = self.parameters if weights is None else weights
        layers = len(given) // 2
        matrices, biases = given[:layers], given[layers:]
        split = self.critics.state_size
        own = actions.repeat_interleave(self.critics.members // self.selections, 0)
        state = observations.expand(len(own), *observations.shape)
        x = torch.baddbmm(biases[0], state, matrices[0][:, :split])
        x = torch.baddbmm(x, own, matrices[0][:, split:])
        for matrix, bias in zip(matrices[1:], biases[1:], strict=True):
            if self.critics.layer_norm:
                x = F.layer_norm(x, x.shape[-1:])
            x = torch.baddbmm(bias, F.relu(x), matrix)
        return x.squeeze(-1) * self.scale + self.center


class FollowedBatches:
    """The transitions on the policy's device, gathered by number.

    Args:
        policy: Its units and its device.
        data: What to fit on, in environment units.
        next_actions: What each selection does at each of the data's observations, normalized.
        train: Shift of the rewards, and what ends the return.
        factor: What the rewards are multiplied with, before the shift.
    """

    def __init__(
        self,
        policy: GEMPolicy,
        data: Transitions,
        next_actions: Float[Tensor, "selections rows action"],
        train: TrainConfig,
        factor: float,
    ) -> None:
        device = policy.device
        ends = data.terminated.clone()
        if train.terminal_reward is not None:
            ends |= data.rewards >= train.terminal_reward
        self.rows = policy.normalizer.apply(data.observations.to(device))
        self.index = (torch.arange(len(data)) + data.episode).to(device)
        self.actions = policy.scaler.apply(data.actions.to(device))
        self.rewards = (data.rewards * factor + train.reward_shift).to(device)
        self.continues = (~ends).float().to(device)
        self.next_actions = next_actions

    def __call__(self, chosen: Tensor) -> FollowedBatch:
        """The transitions with the given numbers."""
        row = self.index[chosen]
        return FollowedBatch(
            self.rows[row],
            self.actions[chosen],
            self.rewards[chosen],
            self.continues[chosen],
            self.rows[row + 1],
            self.next_actions[:, row + 1],
        )


def build_learner(
    policy: GEMPolicy,
    batches: FollowedBatches,
    data: Transitions,
    selections: int,
    config: FittedQConfig,
    train: TrainConfig,
) -> FittedQLearner:
    """Critics of all selections, equal at first, in units of the data's own returns.

    Args:
        policy: Its sizes and its device.
        batches: The transitions to fit on.
        data: The same, as they were recorded.
        selections: How many there are.
        config: Settings of the fit.
        train: Its discount.
    """
    network = policy.config.network
    sizes = (network.observation_size, network.action_size, config.hidden)
    generator = torch.Generator().manual_seed(config.seed)
    one = CriticEnsemble(config.members, *sizes, True, generator=generator)
    critics = CriticEnsemble(config.members * selections, *sizes, True)
    weights = {name: w.repeat(selections, 1, 1) for name, w in one.state_dict().items()}
    critics.load_state_dict(weights)
    own = _returns_to_go(
        batches.rewards.cpu().numpy(),
        batches.continues.cpu().numpy(),
        data.episode.cpu().numpy(),
        train.discount,
    )
    horizon = 1 / (1 - train.discount) if train.discount < 1 else float("inf")
    low, high = float(batches.rewards.min()), float(batches.rewards.max())
    bounds = (min(low, low * horizon if low else 0.0), max(high, high * horizon if high else 0.0))
    return FittedQLearner(
        critics.to(policy.device),
        selections,
        config,
        train.discount,
        float(own.mean()),
        max(float(own.std()), 1e-6),
        bounds,
    )


def _returns_to_go(
    rewards: NDArray[Any], continues: NDArray[Any], episode: NDArray[Any], discount: float
) -> NDArray[np.float64]:
    """The data's own discounted return from every step; 0 is taken for what was cut off."""
    out = np.zeros(len(rewards))
    for t in reversed(range(len(rewards))):
        out[t] = rewards[t]
        if t + 1 < len(rewards) and episode[t + 1] == episode[t]:
            out[t] += discount * continues[t] * out[t + 1]
    return out
