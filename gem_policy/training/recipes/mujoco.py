"""HalfCheetah, Hopper and Walker2d: data of agents of four skill levels.

After D4RL's locomotion sets and Minari's `mujoco` sets in kind: the same simulators (version 5) and
stochastic agents, but other agents: the public ones that the authors of Stable-Baselines3 trained
for a million steps each. The shards go round robin through a dataset's agents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from gem_policy.errors import DatasetError
from gem_policy.training.recipes import references
from gem_policy.training.recipes.episodes import EpisodeRecorder, Episodes
from gem_policy.training.recipes.networks import Agent
from gem_policy.training.recipes.recipe import Recipe, References, Shard
from gem_policy.training.sources import read_arrays


@dataclass(frozen=True)
class Variant:
    """One dataset.

    Attributes:
        body: As in the environment's id.
        level: Last part of the dataset's name.
        agents: Algorithms whose agents act, one a shard, in turn.
    """

    body: str
    level: str
    agents: tuple[str, ...]

    @property
    def name(self) -> str:
        """Id of the dataset."""
        return f"gem/{self.body.lower()}/{self.level}-v0"


# Normalized by D4RL's references, the sampled agents score about: HalfCheetah tqc 95, sac 74,
# ppo 42, a2c 26; Hopper tqc 101, ppo 79, sac 59, a2c 21; Walker2d tqc 96, sac 85, ppo 63, a2c 8.
EXPERT = "tqc"
MEDIUM = {"HalfCheetah": "ppo", "Hopper": "sac", "Walker2d": "ppo"}
ALL = ("tqc", "sac", "ppo", "a2c")
VARIANTS = tuple(
    Variant(body, level, agents)
    for body, medium in MEDIUM.items()
    for level, agents in (
        ("medium", (medium,)),
        ("medium-expert", (medium, EXPERT)),
        ("expert", (EXPERT,)),
        ("mixed", ALL),
    )
)


def env_spec(variant: Variant) -> EnvSpec:
    """The environment, as it is registered."""
    return gym.spec(f"{variant.body}-v5")


def load_agent(variant: Variant, algorithm: str, sources: Path | None) -> Agent:
    """An agent from the folder of sources.

    Raises:
        DatasetError: if it is not there or not an agent.
    """
    return Agent(read_arrays(sources, f"sb3_agents/{algorithm}-{variant.body}-v3.npz"))


def simulate(variant: Variant, shard: Shard) -> Episodes:
    """Simulate `shard.steps` steps of one agent, sampled; the last episode may be cut short."""
    agent = load_agent(variant, variant.agents[shard.index % len(variant.agents)], shard.sources)
    env = _make(env_spec(variant))
    inner: Any = env.unwrapped
    limit = env.spec.max_episode_steps if env.spec else None
    rng = np.random.default_rng([shard.seed, shard.index, 1])
    recorder, done, time, episode = EpisodeRecorder(), True, 0, 0
    observation: Any = None
    try:
        for _ in range(shard.steps):
            if done:
                seed = references.episode_seed(shard.seed, shard.index, episode)
                observation, _ = inner.reset(seed=seed)
                recorder.begin(observation, _state(inner))
                time, episode = 0, episode + 1
            action = agent.act(observation, time, rng).astype(np.float32)
            observation, reward, terminated, _, _ = inner.step(action)
            time += 1
            truncated = time == limit and not terminated
            done = terminated or truncated
            recorder.step(
                action, float(reward), bool(terminated), truncated, observation, _state(inner)
            )
    finally:
        env.close()
    return recorder.finish()


def reference_scores(variant: Variant, seed: int, sources: Path | None) -> References:
    """Random actions, and the expert agent without noise."""
    return _scores_of_body(variant.body, seed, sources)


@lru_cache
def _scores_of_body(body: str, seed: int, sources: Path | None) -> References:
    variant = next(v for v in VARIANTS if v.body == body)
    agent = load_agent(variant, EXPERT, sources)

    def expert(env: gym.Env[Any, Any], episode: int) -> references.Actor:
        return references.Timed(lambda x, time: agent.act(x, time, None).astype(np.float32))

    return references.measure(env_spec(variant), expert, seed)


def _make(spec: EnvSpec) -> gym.Env[Any, Any]:
    try:
        return gym.make(spec, disable_env_checker=True)
    except gym.error.DependencyNotInstalled as error:
        raise DatasetError(
            f"`{spec.id}` cannot be made ({error}): pip install 'gem-policy[envs]'."
        ) from error


def _state(env: Any) -> dict[str, Any]:
    return {"qpos": env.data.qpos, "qvel": env.data.qvel}


def _recipe(variant: Variant) -> Recipe:
    who = " and ".join(name.upper() for name in variant.agents)
    return Recipe(
        name=variant.name,
        summary=f"{variant.body}, {who}, sampled",
        description=(
            f"Stochastic agents act in {variant.body}-v5: {who}, trained for a million steps each "
            "by the authors of Stable-Baselines3 (rl-trained-agents), in turn by pieces of 50 000 "
            "steps. No noise is added. An episode ends as terminated when the body falls and as "
            "truncated after 1000 steps or at the end of a piece. The PPO agent of Walker2d was "
            "told the time left, which is not part of the observation. In the role of "
            "D4RL's and Minari's sets of that name, whose agents were others. `mixed` holds equal "
            "shares of all four levels, in the role of a replay buffer, but is none."
        ),
        simulate=partial(simulate, variant),
        env_spec=partial(env_spec, variant),
        eval_env_spec=partial(env_spec, variant),
        references=partial(reference_scores, variant),
        algorithm=who,
        turns=len(variant.agents),
        requirements=("gymnasium>=1.0", "mujoco>=3.1"),
        license="MIT",
        credits="Agents: rl-trained-agents (DLR-RM, MIT). Recipe: D4RL, Minari.",
        needs_sources=True,
    )


RECIPES = tuple(_recipe(variant) for variant in VARIANTS)
