"""Training runs of a second: little data, tiny networks, few updates, and a way to stop them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from small_datasets import random_episode, write_dataset

from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset, load
from gem_policy.training.minari_root import datasets_in
from gem_policy.training.trainer import Progress, fit

TINY = {
    "actor_hidden": (8,),
    "behavior_hidden": (8,),
    "critic_hidden": (8,),
    "critics": 2,
    "critic_lookahead": False,
    "actor_components": 2,
    "behavior_components": 2,
}
SHORT = TrainConfig(
    behavior_updates=12,
    value_updates=20,
    critic_updates=12,
    actor_updates=12,
    batch_size=16,
    holdout=0.3,
    cautious=False,  # a dozen updates know nothing; their actor is to be trained all the same
)
UPDATES = 56


def random_dataset(folder: Path, lengths: Sequence[int]) -> Dataset:
    """Episodes of these lengths with random content, written into a folder and loaded."""
    rng = np.random.default_rng(0)
    with datasets_in(folder):
        write_dataset("test/random-v0", [random_episode(n, rng) for n in lengths])
        return load("test/random-v0")


def run(dataset: Dataset, out: Path, config: TrainConfig = SHORT, **kwargs: Any) -> bytes:
    """`fit` with tiny networks, saving at every reading; the bytes of the checkpoint."""
    options: dict[str, Any] = {"network": TINY, "log_every": 5, "save_seconds": 0.0, **kwargs}
    return fit(dataset, out, config, **options).read_bytes()


class Stop(Exception):
    """What a test raises to stop a run."""


def stop_at(update: int) -> Any:
    """A progress callback that stops the run after so many updates."""

    def progress(now: Progress) -> None:
        if now.done >= update:  # early stopping skips some
            raise Stop

    return progress
