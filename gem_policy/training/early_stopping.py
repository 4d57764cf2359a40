"""Early stopping: the weights that did best on held-out data, and when to stop looking."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gem_policy.training.learners import Learner


class BestWeights:
    """Keeps a copy of a learner's weights whenever its held-out score is the best so far.

    Attributes:
        score: The best score; minus infinity before the first.
        stale: Scores seen since then.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._weights: dict[str, Tensor] = {}
        self.score, self.stale = -math.inf, 0

    def see(self, score: float) -> None:
        """Take note of the score of the present weights; higher is better, NaN never is."""
        if score > self.score:
            self.score, self.stale = score, 0
            self._weights = {name: value.clone() for name, value in self._live().items()}
        else:
            self.stale += 1

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the learner its best weights again; nothing changes if there was no score."""
        live = self._live()
        for name, value in self._weights.items():
            live[name].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """Everything to save, by name; nothing before the first score."""
        if not self._weights:
            return {}
        score = torch.tensor(self.score, dtype=torch.float64)
        return {**self._weights, "score": score, "stale": torch.tensor(self.stale)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        if tensors:
            live = self._live()
            self._weights = {name: tensors[name].to(live[name]).clone() for name in live}
            self.score, self.stale = float(tensors["score"]), int(tensors["stale"])

    def _live(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, module in self._learner.modules.items()
            for key, value in module.state_dict().items()
        }
