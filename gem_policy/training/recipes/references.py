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
    episodes: int | None = None,
) -> References:
    """Play both policies in the environment of `spec`.

    Args:
        spec: The evaluation environment; its step limit ends the episodes.
        expert: From (environment, episode number) to a function of the observation; called at
            the start of every episode.
        seed: Episode i starts from seed (seed, i) for both policies.
        episodes: How many to average over; 100 unless told.
    """
    episodes = EPISODES if episodes is None else episodes
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


class Timed:
    """Tells a policy how many steps of its episode it has seen."""

    def __init__(self, act: Callable[[Any, int], NDArray[Any]]) -> None:
        self._act, self._time = act, 0

    def __call__(self, observation: Any) -> NDArray[Any]:
        """The action for the next observation of the episode."""
        self._time += 1
        return self._act(observation, self._time - 1)


def episode_seed(*numbers: int) -> int:
    """A seed for `reset`, below 2**31, that follows from all `numbers`."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


def _random_actor(seed: int) -> Callable[[gym.Env[Any, Any], int], Actor]:
    def start(env: gym.Env[Any, Any], episode: int) -> Actor:
        rng = np.random.default_rng([seed, episode])
        space = env.action_space
        assert isinstance(space, gym.spaces.Box)
        return lambda _: rng.uniform(space.low, space.high).astype(space.dtype)

    return start
