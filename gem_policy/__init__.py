"""Deploy offline-RL policies: candidates from a mixture, ranked by value and support.

Axis letters, the same in every docstring: ``*batch`` leading axes of any number, ``candidates`` N
actions proposed per state, ``action`` A, ``obs`` O (flattened), ``components`` K of a mixture,
``members`` E of the critic ensemble. Networks see normalized units only; `predict`, `decide` and
`explain` speak environment units.

The public names load on first use, so that importing the package costs nothing and the command
line can print its help without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gem_policy._version import __version__

if TYPE_CHECKING:
    from gem_policy.checkpoint import Checkpoint
    from gem_policy.config import NetworkConfig, SelectionConfig
    from gem_policy.environments import make_env
    from gem_policy.errors import GEMError
    from gem_policy.mixture_predictor import MixturePredictor
    from gem_policy.policy import GEMPolicy
    from gem_policy.selection import Decision

_HOME = {
    "Checkpoint": "checkpoint",
    "Decision": "selection",
    "GEMError": "errors",
    "GEMPolicy": "policy",
    "MixturePredictor": "mixture_predictor",
    "NetworkConfig": "config",
    "SelectionConfig": "config",
    "make_env": "environments",
}

__all__ = [
    "Checkpoint",
    "Decision",
    "GEMError",
    "GEMPolicy",
    "MixturePredictor",
    "NetworkConfig",
    "SelectionConfig",
    "__version__",
    "make_env",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gem_policy' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gem_policy.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
