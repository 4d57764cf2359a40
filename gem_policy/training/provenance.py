"""What a checkpoint says about where it comes from; no path, host or device among it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gem_policy._version import __version__
from gem_policy.env_specs import without_policies
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset

_LIBRARIES = ("torch", "numpy", "gymnasium", "minari", "gymnasium-robotics", "mujoco")


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that shape a result."""
    found = {"gem-policy": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe(dataset: Dataset, config: TrainConfig) -> dict[str, Any]:
    """Provenance of a freshly trained policy; measured returns are added by evaluation."""
    rewards = dataset.transitions.returns
    return {
        "dataset_id": dataset.id,
        "dataset_episodes": dataset.transitions.episodes,
        "dataset_steps": len(dataset.transitions),
        "dataset_mean_return": float(rewards.mean()),
        "dataset_recipe": finite(json.loads(json.dumps(dict(dataset.recipe), default=str))),
        "env_spec": _spec(dataset.env_spec),
        "eval_env_spec": _spec(dataset.eval_env_spec) or _spec(dataset.env_spec),
        "reference_min": finite(dataset.ref_min),
        "reference_max": finite(dataset.ref_max),
        "train": dataclasses.asdict(config),
        "versions": versions(),
    }


def finite(value: Any) -> Any:
    """A JSON document without NaN and infinite numbers, which are none in JSON: None instead."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _spec(text: str | None) -> Any:
    """An environment spec as a JSON object; as its text where an argument is infinite.

    Gymnasium writes and reads `Infinity`, which is no JSON. Wrappers that held the policy which
    made the data are left out, and with them where its file lies.
    """
    if text is None:
        return None
    document = json.loads(text)
    with contextlib.suppress(AttributeError, KeyError, TypeError):  # no description at all
        document = without_policies(document)
    return document if finite(document) == document else json.dumps(document)
