"""From a dataset in environment units to normalized transitions, and the statistics to keep."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from gem_policy.errors import TrainingError
from gem_policy.normalize import ActionScaler, ObservationNormalizer
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.episodes import LEAST_TRANSITIONS, episode_weights
from gem_policy.training.memory import check_room, training_bytes
from gem_policy.training.replay import Replay, look_ahead
from gem_policy.training.reward_scale import RewardScale
from gem_policy.training.transitions import Transitions


@dataclass(frozen=True)
class Prepared:
    """What the learners see, and what deployment needs to see the same.

    Attributes:
        training: The transitions to train on.
        held_out: Transitions of other episodes, for validation and calibration.
        normalizer: Statistics of the training observations.
        scaler: The action box.
        scale: What the dataset's rewards are learned as.
    """

    training: Replay
    held_out: Replay
    normalizer: ObservationNormalizer
    scaler: ActionScaler
    scale: RewardScale


def check_training_room(dataset: Dataset, seeds: int = 1) -> None:
    """Refuse, before anything is made of it, a dataset that so many seeds cannot be trained on.

    Raises:
        DatasetError: The data fit into memory, but what is made of them would not.
    """
    steps = len(dataset.transitions)
    needed = training_bytes(dataset.transitions.nbytes / steps, seeds)
    check_room(dataset.id, steps, needed, "Training on")


def prepare(dataset: Dataset, config: TrainConfig, device: torch.device) -> Prepared:
    """Split by episodes, normalize, scale the rewards, mark where returns end.

    Raises:
        TrainingError: The rewards are all the same, so there is nothing to prefer; or all returns
            are, and they were to be normalized.
    """
    training, held_out = split(dataset, config.holdout, config.seed)
    scale = RewardScale.of(dataset, config)
    _stop_if_nothing_to_prefer(dataset, scale)
    normalizer = ObservationNormalizer.fit(training.transitions.observations)
    scaler = action_scaler(dataset)
    parts = training.transitions, held_out.transitions
    weights = episode_weights(
        *parts,
        config.episode_temperature,
        config.weight_max,
        LEAST_TRANSITIONS,
        scale.factor,
        scale.shift,
    )
    seen, unseen = (
        replace(
            replay(part, normalizer, scaler, config, scale, device), episode_weights=own.to(device)
        )
        for part, own in zip(parts, weights, strict=True)
    )
    return Prepared(
        training=seen,
        held_out=unseen,
        normalizer=normalizer,
        scaler=scaler,
        scale=scale,
    )


def _stop_if_nothing_to_prefer(dataset: Dataset, scale: RewardScale) -> None:
    """Raise a `TrainingError` where every action of the data comes to the same."""
    low, high = (float(x) for x in dataset.transitions.rewards.aminmax())
    paid, ends = low * scale.factor + scale.shift, bool(dataset.transitions.terminated.any())
    if low == high and not (ends and paid != 0):
        why = "an episode's end costs nothing" if ends else "no episode terminates"
        raise TrainingError(
            f"Every reward of {dataset.id} is {low:g} (scaled and shifted {paid:g}) and {why}: all "
            "actions are equally good. Check how the dataset was made."
        )


def split(dataset: Dataset, holdout: float, seed: int) -> tuple[Dataset, Dataset]:
    """The episodes that a run with these settings trains on, and those that it holds out."""
    return dataset.split(_fraction(holdout), seed)


def _fraction(holdout: float) -> float:
    """Share of the episodes to train on; one at least is held out."""
    return 1 - max(holdout, 1e-9)


def training_numbers(dataset: Dataset, config: TrainConfig) -> Int[Tensor, " transitions"]:
    """Numbers, in the whole dataset, of the transitions that `prepare` trains on, in its order."""
    episodes, _ = dataset.split_episodes(_fraction(config.holdout), config.seed)
    keep = torch.zeros(dataset.transitions.episodes, dtype=torch.bool)
    keep[episodes] = True
    return keep[dataset.transitions.episode.cpu()].nonzero()[:, 0]


def action_scaler(dataset: Dataset) -> ActionScaler:
    """To and from the dataset's action box."""
    return ActionScaler(
        torch.as_tensor(dataset.action_space.low, dtype=torch.float32),
        torch.as_tensor(dataset.action_space.high, dtype=torch.float32),
    )


def replay(
    data: Transitions,
    normalizer: ObservationNormalizer | None,
    scaler: ActionScaler,
    config: TrainConfig,
    scale: RewardScale,
    device: torch.device,
) -> Replay:
    """Transitions of whole episodes on the device, normalized if there are statistics."""
    rows = data.observations if normalizer is None else normalizer.apply(data.observations)
    ends = data.terminated.clone()
    if config.terminal_reward is not None:
        ends |= data.rewards >= config.terminal_reward
    rewards = scale(data.rewards)
    continues = (~ends).float()
    index = torch.arange(len(data)) + data.episode
    returns, discounts, taken = look_ahead(
        rewards, continues, data.episode, config.value_steps, config.discount
    )
    return Replay(
        rows=rows.to(device),
        index=index.to(device),
        actions=scaler.apply(data.actions).to(device),
        rewards=rewards.to(device),
        continues=continues.to(device),
        lives=(~data.terminated).float().to(device),
        ahead_returns=returns.to(device),
        ahead_discounts=discounts.to(device),
        ahead_rows=(index + taken).to(device),
        advantages=torch.empty(len(data), 0, device=device),
        episode_weights=torch.ones(len(data), device=device),
        weights=torch.ones(len(data), device=device),
    )
