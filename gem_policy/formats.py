"""The formats that a checkpoint's JSON document had, and what leads from each to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gem_policy.errors import CheckpointError

FORMAT_VERSION = 7


def _with_frequencies(document: dict[str, Any]) -> dict[str, Any]:
    """Format 2 says in which frequencies critics see the observation; before, it was none."""
    return {**document, "network": {"critic_frequencies": 0, **document["network"]}}


def _with_lookahead(document: dict[str, Any]) -> dict[str, Any]:
    """Format 3 says whether the critics look one step ahead; before, none did."""
    added = {"critic_lookahead": False, "step_hidden": [128, 128]}
    return {**document, "network": {**added, **document["network"]}}


def _with_gain_kappa(document: dict[str, Any]) -> dict[str, Any]:
    """Format 4 says what a candidate must gain to replace the mode; before, that was nothing."""
    return {**document, "selection": {"gain_kappa": None, **document["selection"]}}


def _with_least_gain(document: dict[str, Any]) -> dict[str, Any]:
    """Format 5 says how large a gain must be, and in what unit; before, nobody had measured it."""
    selection = {"least_gain": 0.0, **document["selection"]}
    return {"gain_unit": 0.0, **document, "selection": selection}


def _with_gain_per_nat(document: dict[str, Any]) -> dict[str, Any]:
    """Format 6 says what a candidate must gain for support that it gives up; before, nothing."""
    return {**document, "selection": {"gain_per_nat": 0.0, **document["selection"]}}


def _with_deciding_candidates(document: dict[str, Any]) -> dict[str, Any]:
    """Format 7 says how many candidates decide whether the mode is replaced; before, all did."""
    return {**document, "selection": {"deciding_candidates": None, **document["selection"]}}


# How to turn the document of format version v into that of v + 1, by v.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _with_frequencies,
    2: _with_lookahead,
    3: _with_gain_kappa,
    4: _with_least_gain,
    5: _with_gain_per_nat,
    6: _with_deciding_candidates,
}


def require_known_version(document: Any, source: str) -> None:
    """Make sure that `migrated` knows the format of a checkpoint's document.

    Raises:
        CheckpointError: It is no such document, or is of a newer or an unknown format.
    """
    if not isinstance(document, dict) or type(document.get("format_version")) is not int:
        raise CheckpointError(f"{source} is no gem-policy checkpoint: it has no format version.")
    version = document["format_version"]
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{source} has format version {version}, this gem-policy reads up to "
            f"{FORMAT_VERSION}. Upgrade: pip install --upgrade gem-policy"
        )
    if version < FORMAT_VERSION and version not in MIGRATIONS:
        raise CheckpointError(f"{source} has the unknown format version {version}.")


def migrated(document: dict[str, Any]) -> dict[str, Any]:
    """A document of a known format as one of this format; its ``format_version`` stays.

    Raises:
        KeyError: It lacks a part that every format has.
    """
    for old in range(document["format_version"], FORMAT_VERSION):
        document = MIGRATIONS[old](document)
    return document
