"""The default of weight decay, by the dataset's size: few demonstrations are learned by heart."""

from __future__ import annotations

from dataclasses import replace

from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.episodes import LEAST_TRANSITIONS

SMALL_DATA_DECAY = 0.1


def settle_decay(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """The settings with a weight decay: where it is None, `SMALL_DATA_DECAY` or 0.

    The former for datasets of no more than `LEAST_TRANSITIONS` transitions, held-out ones too: the
    same for every seed (our choice, measured on the demonstrations of door; DESIGN.md).
    """
    if config.weight_decay is not None:
        return config
    few = len(dataset.transitions) <= LEAST_TRANSITIONS
    return replace(config, weight_decay=SMALL_DATA_DECAY if few else 0.0)
