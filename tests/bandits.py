"""Contextual bandits with a known answer: several good actions, bad ones between, the best rare.

The tests and `benchmarks/bandit.py` use the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from small_datasets import write_dataset

from gem_policy.training.dataset import Dataset, load

LENGTH = 100  # steps of an episode; every step is a problem of its own


@dataclass(frozen=True)
class Bandit:
    """Three modes whose places follow the context; the data's actions scatter around them.

    An action at distance d of a mode is worth ``height * exp(-(d / width)^2)``, that of its best
    mode. In one dimension the modes lie on a line. In more, each pair of dimensions holds them at
    the corners of a triangle, which the context turns. The mean of all modes, or of any two, is
    worth next to nothing.

    Attributes:
        action_size: 1 or an even number.
        heights: Reward at each mode.
        shares: Share of the data at each mode; the last one is the rare and best.
        scatter: Standard deviation of the data around a mode, per dimension.
        width: Width of a mode, per square root of a dimension.
        reward_noise: Standard deviation of the noise on the data's rewards.
    """

    action_size: int
    heights: tuple[float, ...] = (0.6, 0.7, 1.0)
    shares: tuple[float, ...] = (0.5, 0.45, 0.05)
    scatter: float = 0.1
    width: float = 0.2
    reward_noise: float = 0.05

    @property
    def context_size(self) -> int:
        """One number for each pair of dimensions, and for the line."""
        return (self.action_size + 1) // 2

    def contexts(self, rows: int, rng: np.random.Generator) -> Any:
        """Uniform contexts, (rows, context_size), float32."""
        return rng.uniform(-1, 1, (rows, self.context_size)).astype(np.float32)

    def modes(self, contexts: Any) -> Any:
        """Places of the modes, (rows, 3, action_size)."""
        wave = np.sin(np.pi * np.asarray(contexts, np.float64))
        if self.action_size == 1:
            # The rare one off the middle: a mean of the data must not find it by chance.
            return np.stack([wave * 0.15 + place for place in (-0.7, 0.75, -0.25)], 1)
        # Pairs turn in opposite senses, so that they do not all say the same.
        sense = np.where(np.arange(self.context_size) % 2, -1.0, 1.0)
        corner = 2 * np.pi / 3 * np.arange(3)[:, None] * sense
        angle = corner + 1.2 * wave[:, None]
        return 0.6 * np.stack([np.cos(angle), np.sin(angle)], -1).reshape(len(wave), 3, -1)

    def rewards(self, contexts: Any, actions: Any) -> Any:
        """What each action is worth, without noise, (rows,); at most 1."""
        return self._of_each(contexts, actions).max(1)

    def places(self, contexts: Any, actions: Any) -> Any:
        """The mode that an action lies at, worth at least half of it; -1 where at none."""
        each = self._of_each(contexts, actions)
        best = each.argmax(1)
        there = each.max(1) >= 0.5 * np.asarray(self.heights)[best]
        return np.where(there, best, -1)

    def _of_each(self, contexts: Any, actions: Any) -> Any:
        gap = np.asarray(actions, np.float64)[:, None] - self.modes(contexts)
        square = np.square(gap).mean(-1) / self.width**2
        return np.asarray(self.heights) * np.exp(-square)

    def data(self, rows: int, rng: np.random.Generator) -> tuple[Any, Any, Any]:
        """Contexts, actions and noisy rewards as the data have them."""
        contexts = self.contexts(rows, rng)
        mode = rng.choice(len(self.shares), rows, p=self.shares)
        actions = self.modes(contexts)[np.arange(rows), mode]
        actions = actions + self.scatter * rng.standard_normal(actions.shape)
        actions = np.clip(actions, -1, 1).astype(np.float32)
        noise = self.reward_noise * rng.standard_normal(rows)
        return contexts, actions, self.rewards(contexts, actions) + noise

    def dataset(self, dataset_id: str, episodes: int, seed: int) -> Dataset:
        """A real Minari dataset of it, written where MINARI_DATASETS_PATH points, and loaded."""
        rng = np.random.default_rng(seed)
        ends = np.arange(LENGTH) == LENGTH - 1
        buffers = []
        for _ in range(episodes):
            contexts, actions, rewards = self.data(LENGTH, rng)
            buffers.append(
                {
                    "observations": np.concatenate([contexts, self.contexts(1, rng)]),
                    "actions": actions,
                    "rewards": rewards,
                    "terminations": np.zeros(LENGTH, dtype=bool),
                    "truncations": ends,
                    "infos": {"success": [False] * (LENGTH + 1)},
                }
            )
        write_dataset(
            dataset_id,
            buffers,
            observation_space=gym.spaces.Box(-1, 1, (self.context_size,), np.float32),
            action_space=gym.spaces.Box(-1, 1, (self.action_size,), np.float32),
        )
        return load(dataset_id)


PROBLEMS = {1: Bandit(1, scatter=0.06, width=0.12), 2: Bandit(2), 8: Bandit(8)}
