"""The offline trainer: from a Minari dataset to a checkpoint. Never imported by deployment.

    from gem_policy.training import fit, load

    fit(load("gem/pointmaze/umaze-v0"), "runs/umaze")

The names load on first use, so that one part of the trainer does not import all others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gem_policy.training.config import TrainConfig
    from gem_policy.training.dataset import Dataset, load
    from gem_policy.training.seeds import fit_seeds
    from gem_policy.training.trainer import Progress, fit

_HOME = {
    "Dataset": "dataset",
    "Progress": "trainer",
    "TrainConfig": "config",
    "fit": "trainer",
    "fit_seeds": "seeds",
    "load": "dataset",
}

__all__ = ["Dataset", "Progress", "TrainConfig", "fit", "fit_seeds", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gem_policy.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gem_policy.training.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
