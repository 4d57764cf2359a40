"""Dropout of the mixtures' hidden layers, in training only; the deployed network knows nothing."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from gem_policy.mixture import GaussianMixture
from gem_policy.networks import MixturePolicy

_STREAM = 1  # told apart from the batches, which are drawn from (seed, phase, chunk)


def dropout_generator(seed: int, phase: int, step: int) -> torch.Generator:
    """The source of the masks of one update: a function of (seed, phase, update) alone."""
    mixed = np.random.SeedSequence((seed, phase, step, _STREAM)).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


def forward_with_dropout(
    model: MixturePolicy,
    observations: Float[Tensor, "batch obs"],
    rate: float,
    generator: torch.Generator,
) -> GaussianMixture:
    """``model(observations)`` with hidden units dropped.

    Inverted dropout (Srivastava et al., 2014): after every hidden activation a unit is 0 with
    probability ``rate``, else divided by ``1 - rate``, independently for every row. Masks are drawn
    on the CPU, so that a seed means the same on every device.

    Args:
        model: Whose weights to use.
        observations: Normalized.
        rate: In [0, 1).
        generator: On the CPU.
    """
    x = observations
    last = len(model.weights) - 1
    for layer in range(last):
        x = F.relu(model.linear(layer, x))
        kept = (torch.rand(x.shape, generator=generator) >= rate).to(x)
        x = x * kept / (1 - rate)
    return model.mixture(model.linear(last, x))
