"""Defaults that follow the dataset's size: few demonstrations are easily learned by heart.

A wide network whose weights decay strongly knows less of them by heart than a narrow one, and acts
better (our choice, measured on the demonstrations of door; on eight episodes each of HalfCheetah,
Walker2d and Hopper, on which nothing was chosen, it is no worse; DESIGN.md). The limit is on all
transitions, held-out ones too: it is the same for every seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.episodes import LEAST_TRANSITIONS

DECAY = 0.5
WIDE: Mapping[str, Any] = {"actor_hidden": (512, 512), "behavior_hidden": (512, 512)}


def settle_decay(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """The settings with a weight decay: where it is None, `DECAY` for few transitions, else 0."""
    if config.weight_decay is not None:
        return config
    return replace(config, weight_decay=DECAY if are_few(dataset) else 0.0)


def widths(dataset: Dataset) -> Mapping[str, Any]:
    """What differs from `NetworkConfig`'s defaults: for few transitions, the mixtures' layers."""
    return WIDE if are_few(dataset) else {}


def are_few(dataset: Dataset) -> bool:
    """Whether a dataset has no more than `LEAST_TRANSITIONS` transitions."""
    return len(dataset.transitions) <= LEAST_TRANSITIONS
