"""Reference scores: what a random and an expert policy earn in an evaluation environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from gem_policy.training.recipes.recipe import References

Actor = Callable[[Any], NDArray[Any]]
EPISODES = 100


def measure(
    spec: EnvSpec,
    expert: Callable[[gym.Env[Any, Any], int], Actor],
    seed: int,
    episodes: int = EPISODES,
) -> References:
    """Play both policies in the environment of `spec`.

    Args:
        spec: The evaluation environment; its step limit ends the episodes.
        expert: From (environment, episode number) to a function of the observation; called at
            the start of every episode.
        seed: Episode i starts from seed (seed, i) for both policies.
        episodes: How many to average over.
    """
    env = gym.make(spec, disable_env_checker=True)
    try:
        return References(
            minimum=_mean_return(env, _random_actor(seed), seed, episodes),
            maximum=_mean_return(env, expert, seed, episodes),
            episodes=episodes,
        )
    finally:
        env.close()


def _mean_return(
    env: gym.Env[Any, Any],
    policy: Callable[[gym.Env[Any, Any], int], Actor],
    seed: int,
    episodes: int,
) -> float:
    inner, limit = env.unwrapped, env.spec.max_episode_steps if env.spec else None
    total = 0.0
    for episode in range(episodes):
        observation, _ = inner.reset(seed=episode_seed(seed, episode))
        act = policy(env, episode)
        step, done = 0, False
        while not done:
            observation, reward, done, truncated, _ = inner.step(act(observation))
            total += float(reward)
            step += 1
            done = done or truncated or step == limit
    return total / episodes


def episode_seed(seed: int, episode: int) -> int:
    """A seed for `reset`, below 2**31, that differs for every pair."""
    return int(np.random.SeedSequence([seed, episode]).generate_state(1)[0] >> 1)


def _random_actor(seed: int) -> Callable[[gym.Env[Any, Any], int], Actor]:
    def start(env: gym.Env[Any, Any], episode: int) -> Actor:
        rng = np.random.default_rng([seed, episode])
        space = env.action_space
        assert isinstance(space, gym.spaces.Box)
        return lambda _: rng.uniform(space.low, space.high).astype(space.dtype)

    return start
