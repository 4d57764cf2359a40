"""The policies that ship with the package: which there are, and where their files lie.

Data only: importing this brings neither torch nor any other package.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """Names that `GEMPolicy.load` understands, in alphabetical order."""
    return sorted(file.parent.name for file in _FOLDER.glob("*/model.safetensors"))


def path(name: str) -> Path:
    """The weights file of the shipped policy `name`; `KeyError` if there is none."""
    file = _FOLDER / name / "model.safetensors"
    if name not in names():
        raise KeyError(name)
    return file
