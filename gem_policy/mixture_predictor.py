"""A policy's mixtures alone, without candidates or critics: cloning and the actor, as players."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy.errors import ConfigError
from gem_policy.policy import GEMPolicy
from gem_policy.predictor import Predictor


class MixturePredictor(Predictor):
    """What a policy's mixture does without candidates or critics: the baselines of every table.

    Args:
        policy: Whose networks to use.
        source: ``"behavior"``: the cloned data (behavior cloning), or ``"actor"``.
        seed: Seed of the generator behind ``deterministic=False``.

    ``predict(deterministic=True)`` returns the mean of the heaviest component, False a sample.
    """

    def __init__(self, policy: GEMPolicy, source: str, seed: int = 0) -> None:
        if source not in ("behavior", "actor"):
            raise ConfigError(f"`source` must be 'behavior' or 'actor', got {source!r}.")
        super().__init__(policy.observation_space, policy.action_space, policy.device, seed)
        self._policy = policy
        self._mixture = policy.behavior_mixture if source == "behavior" else policy.mixture

    def act(
        self, rows: Float[Tensor, "batch obs"], generator: torch.Generator | None
    ) -> Float[Tensor, "batch action"]:
        """Mode or sample of the mixture, in environment units."""
        mixture = self._mixture(rows)
        if generator is None:
            action = mixture.mode()
        else:
            # Nothing can be drawn by weights that overflowed; the means are NaN there, too.
            mixture = replace(mixture, logits=mixture.logits.nan_to_num())
            action = mixture.sample(1, generator).squeeze(-2)
        return self._policy.scaler.invert(action.clamp(-1, 1))
