"""The only conversions of units: environment units outside, normalized units inside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy.errors import SpaceError

CONSTANT = 1e-6  # an observation dimension that moves less than this is a constant, not a signal


@dataclass(frozen=True)
class ObservationNormalizer:
    """``(observation - mean) / std``, per dimension, with frozen statistics of the dataset."""

    mean: Float[Tensor, " obs"]
    std: Float[Tensor, " obs"]

    @classmethod
    def fit(cls, rows: Float[Tensor, "rows obs"]) -> ObservationNormalizer:
        """Statistics of a dataset's observations; constant dimensions get std 1."""
        # Column by column, in float64: exact for a million rows, without a second copy of them.
        mean = torch.stack([c.double().mean() for c in rows.unbind(-1)])
        std = torch.stack([c.double().std(correction=0) for c in rows.unbind(-1)])
        std = torch.where(std < CONSTANT, torch.ones_like(std), std)
        return cls(mean.float(), std.float())

    def apply(self, observations: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch obs"]:
        """Environment units to normalized units."""
        return (observations - self.mean) / self.std

    def invert(self, observations: Float[Tensor, "*batch obs"]) -> Float[Tensor, "*batch obs"]:
        """Normalized units to environment units."""
        return observations * self.std + self.mean


@dataclass(frozen=True)
class ActionScaler:
    """The action box [low, high] to and from [-1, 1], per dimension."""

    low: Float[Tensor, " action"]
    high: Float[Tensor, " action"]

    def __post_init__(self) -> None:
        finite = bool(torch.isfinite(self.low).all() and torch.isfinite(self.high).all())
        if not finite or not bool((self.low < self.high).all()):
            raise SpaceError(
                f"The action space must be a bounded Box with low < high in every dimension, got "
                f"low={self.low.tolist()}, high={self.high.tolist()}. Give the "
                "environment's actions finite bounds, in a gymnasium.ActionWrapper of your own."
            )

    def apply(self, actions: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        """Environment units to normalized units."""
        return 2 * (actions - self.low) / (self.high - self.low) - 1

    def invert(self, actions: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        """Normalized units to environment units, exactly within the box."""
        scaled = self.low + 0.5 * (actions + 1) * (self.high - self.low)
        return torch.clamp(scaled, self.low, self.high)
