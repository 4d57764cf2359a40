"""From a dataset in environment units to normalized transitions, and the statistics to keep."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gem_policy.errors import TrainingError
from gem_policy.normalize import ActionScaler, ObservationNormalizer
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.replay import Replay, look_ahead
from gem_policy.training.transitions import Transitions


@dataclass(frozen=True)
class Prepared:
    """What the learners see, and what deployment needs to see the same.

    Attributes:
        training: The transitions to train on.
        held_out: Transitions of other episodes, for validation and calibration.
        normalizer: Statistics of the training observations.
        scaler: The action box.
    """

    training: Replay
    held_out: Replay
    normalizer: ObservationNormalizer
    scaler: ActionScaler


def prepare(dataset: Dataset, config: TrainConfig, device: torch.device) -> Prepared:
    """Split by episodes, normalize, scale the rewards, mark where returns end.

    Raises:
        TrainingError: The rewards are all the same, so there is nothing to prefer.
    """
    fraction = 1 - max(config.holdout, 1e-9)
    training, held_out = dataset.split(fraction, config.seed)
    rewards = dataset.transitions.rewards
    if float(rewards.min()) == float(rewards.max()) and not bool(
        dataset.transitions.terminated.any()
    ):
        raise TrainingError(
            f"Every reward of {dataset.id} is {float(rewards[0])} and no episode terminates: "
            "all actions are equally good. Check how the dataset was made."
        )
    normalizer = ObservationNormalizer.fit(training.transitions.observations)
    scaler = ActionScaler(
        torch.as_tensor(dataset.action_space.low, dtype=torch.float32),
        torch.as_tensor(dataset.action_space.high, dtype=torch.float32),
    )
    return Prepared(
        training=_replay(training.transitions, normalizer, scaler, config, device),
        held_out=_replay(held_out.transitions, normalizer, scaler, config, device),
        normalizer=normalizer,
        scaler=scaler,
    )


def _replay(
    data: Transitions,
    normalizer: ObservationNormalizer,
    scaler: ActionScaler,
    config: TrainConfig,
    device: torch.device,
) -> Replay:
    """Normalized transitions of whole episodes, on the device."""
    ends = data.terminated.clone()
    if config.terminal_reward is not None:
        ends |= data.rewards >= config.terminal_reward
    rewards = data.rewards * config.reward_scale + config.reward_shift
    continues = (~ends).float()
    index = torch.arange(len(data)) + data.episode
    returns, discounts, taken = look_ahead(
        rewards, continues, data.episode, config.value_steps, config.discount
    )
    return Replay(
        rows=normalizer.apply(data.observations).to(device),
        index=index.to(device),
        actions=scaler.apply(data.actions).to(device),
        rewards=rewards.to(device),
        continues=continues.to(device),
        ahead_returns=returns.to(device),
        ahead_discounts=discounts.to(device),
        ahead_rows=(index + taken).to(device),
        weights=torch.ones(len(data), device=device),
    )
