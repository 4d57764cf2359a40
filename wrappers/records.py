"""Records of what a wrapper saw: nested dictionaries of arrays, one row per environment.

A single environment is a vector of one: the wrappers compute records for any number and
`first` turns the only row into what belongs into a single environment's ``info``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gem_policy.config import plain

Array = NDArray[Any]
Record = dict[str, Any]  # values: arrays (envs, ...), or records

_MISSING = {"f": np.nan, "i": -1, "b": False, "O": ""}  # by kind of dtype


def spread(record: Mapping[str, Any], active: NDArray[np.bool_]) -> Record:
    """A record of the active environments as one of all, with blanks for the others.

    Args:
        record: Rows for the active environments, in order.
        active: Shape (envs,).

    Returns:
        Rows for all: NaN, -1, False and "" where an environment was not active.
    """

    def widen(rows: Array) -> Array:
        wide = np.full((len(active), *rows.shape[1:]), _MISSING[rows.dtype.kind], rows.dtype)
        wide[active] = rows
        return wide

    return _map(record, widen)


def first(record: Mapping[str, Any]) -> Record:
    """The first row as plain Python: numbers, flags, texts, and an array where it has axes."""
    return _map(record, lambda rows: rows[0].copy() if rows.ndim > 1 else rows.tolist()[0])


def add(info: dict[str, Any], record: Mapping[str, Any]) -> None:
    """Put a record's entries into ``info["gem"]``, beside those of other wrappers."""
    info["gem"] = {**info.get("gem", {}), **record}


def plain_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings, with `plain` values."""
    return {name: plain(value) for name, value in settings.items()}


def _map(record: Mapping[str, Any], function: Callable[[Array], Any]) -> Record:
    return {
        key: _map(value, function) if isinstance(value, Mapping) else function(value)
        for key, value in record.items()
    }
