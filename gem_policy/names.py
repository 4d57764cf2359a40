"""What a policy is loaded by: a shipped name, a path, or a repository of the hub."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path

from gem_policy import pretrained
from gem_policy.errors import CheckpointError, GEMWarning
from gem_policy.hub import download


def resolve(source: str | Path) -> Path:
    """The local file or folder behind a shipped name, a path, or ``hf://org/repo``.

    Raises:
        CheckpointError: It is none of them; the message has the closest name.
    """
    if not isinstance(source, str | Path):
        raise CheckpointError(
            f"A policy is loaded by a name or a path, got {type(source).__name__}. "
            "`gem-policy list` shows the names."
        )
    text = str(source)
    if not text:
        raise CheckpointError(
            "A policy is loaded by a name or a path, got an empty one; '.' is the current folder. "
            "`gem-policy list` shows the names."
        )
    if text.startswith("hf://"):
        return download(text)
    if text in pretrained.names():
        shipped = pretrained.path(text)
        if _exists(Path(text)) and not shipped.samefile(text):
            warnings.warn(
                f"{text!r} is the shipped policy. For the file or folder of that name write "
                f"'./{text}'.",
                GEMWarning,
                stacklevel=3,
            )
        return shipped
    if _exists(Path(source)):
        return Path(source)
    if text.endswith(".safetensors") or "/" in text or "\\" in text:
        raise CheckpointError(
            f"There is no file or folder {text!r}. A hub repository is written hf://org/repo, as a "
            "string; a home folder is written out."
        )
    names = pretrained.names()
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.4)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise CheckpointError(
        f"There is no shipped policy {text!r}, and no such file or folder. {hint}"
        f"Shipped are {list(names)}; a hub repository is written hf://org/repo."
    )


def _exists(path: Path) -> bool:
    """Whether there is something; nothing is where no path can lead."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds a null byte
        return False
