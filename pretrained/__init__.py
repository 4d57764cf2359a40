"""The policies that come with the package: their names and files, nothing else.

Each is a folder ``<name>/`` with ``model.safetensors``, its card ``README.md`` and, behind the
card's numbers, ``evaluation.json``. Beside them ``<recipe>.json``: settings that they were trained
with, which ``gem-policy train --config <recipe>`` takes by name.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

_WEIGHTS = "model.safetensors"


def names() -> tuple[str, ...]:
    """Names of the shipped policies, sorted."""
    root = files(__name__)
    return tuple(sorted(d.name for d in root.iterdir() if d.joinpath(_WEIGHTS).is_file()))


def path(name: str) -> Path:
    """The folder of a shipped policy.

    Raises:
        KeyError: No policy of that name is shipped.
    """
    if name not in names():
        raise KeyError(name)
    return Path(str(files(__name__).joinpath(name)))


def recipe(name: str) -> Path | None:
    """The file of a shipped recipe, or None where there is none of that name."""
    return Path(str(files(__name__).joinpath(f"{name}.json"))) if name in recipes() else None


def recipes() -> tuple[str, ...]:
    """Names of the shipped recipes, sorted."""
    found = (entry.name for entry in files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".json") for name in found if name.endswith(".json")))
