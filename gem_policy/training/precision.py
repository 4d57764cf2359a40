"""Hidden layers in a lower precision during an update, and a loss that takes its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

LossAndMetrics = tuple[Tensor, dict[str, Tensor]]


class LossOf(nn.Module):
    """A learner's loss as a module, so that its parameters can be replaced for a call.

    Args:
        loss: The learner's own.
        modules: The networks that it asks, by name.
    """

    def __init__(
        self, loss: Callable[[Any, bool], LossAndMetrics], modules: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        self.loss = loss
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, batch: Any, told: bool = True) -> LossAndMetrics:
        """The loss of a batch."""
        return self.loss(batch, told)


def lower_hidden(parameters: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """The parameters, those between two hidden layers rounded to a precision.

    They are most of the work. First and last layers stay: an observation's fourth digit can
    matter, and a value's third does, because one action changes it by a hundredth (our choice).

    Args:
        parameters: By name; a network's layers are ``weights.0``, ``biases.0``, ``weights.1``, ...
            with something before.
        precision: A floating-point type of torch, by name.
    """
    dtype = getattr(torch, precision)
    return {
        name: value.to(dtype) if _is_hidden(name, parameters) else value
        for name, value in parameters.items()
    }


def _is_hidden(name: str, names: Mapping[str, Tensor]) -> bool:
    """Whether a layer has another before it and one after it."""
    stem, _, layer = name.rpartition(".")
    if not stem.endswith(("weights", "biases")):
        return False
    return int(layer) > 0 and f"{stem}.{int(layer) + 1}" in names
