"""A recipe whose simulator is a random number generator; other processes can import it."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from gem_policy.training.recipes.episodes import EpisodeRecorder, Episodes
from gem_policy.training.recipes.recipe import Recipe, References, Shard


def simulate(shard: Shard) -> Episodes:
    """Episodes of 4 steps with the spaces of Pendulum."""
    rng = np.random.default_rng([shard.seed, shard.index])
    recorder = EpisodeRecorder()
    for step in range(shard.steps):
        if step % 4 == 0:
            recorder.begin(rng.standard_normal(3), {"success": False})
        recorder.step(
            rng.uniform(-2, 2, 1).astype(np.float32),
            float(shard.index),
            False,
            step % 4 == 3,
            rng.standard_normal(3),
            {"success": step % 4 == 3},
        )
    return recorder.finish()


def spec() -> EnvSpec:
    return gym.spec("Pendulum-v1")


def references(seed: int, sources: Path | None) -> References:
    return References(minimum=float(seed), maximum=float(seed) + 10.0, episodes=3)


RECIPE = Recipe(
    name="gem/toy/small-v0",
    summary="numbers",
    description="numbers from a generator",
    simulate=simulate,
    env_spec=spec,
    eval_env_spec=spec,
    references=references,
    algorithm="none",
    steps=40,
    shard_steps=10,
    requirements=(),
)
