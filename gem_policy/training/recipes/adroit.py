"""The Adroit hand: human demonstrations, experts and clones, after D4RL and Minari.

`human` plays the 25 recorded demonstrations of the door again, from their recorded states, in
today's simulator, and keeps what it returns. `expert` samples the policies that D4RL sampled.
`cloned` follows D4RL's recipe: half of the data comes from a policy cloned from the
demonstrations, the other half is the demonstrations themselves, over and over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from torch import nn

from gem_policy.errors import DatasetError
from gem_policy.training.recipes import references
from gem_policy.training.recipes.episodes import EpisodeRecorder, Episodes
from gem_policy.training.recipes.networks import HandExpert
from gem_policy.training.recipes.recipe import Recipe, References, Shard
from gem_policy.training.recipes.robotics import make_robotics
from gem_policy.training.sources import read_arrays

Array = NDArray[Any]

DEMONSTRATION_STEPS = 6729  # of all 25
DEMONSTRATION_LIMIT = 300  # the longest has exactly that many
CLONE_EPOCHS = 200
CLONE_WIDTH = 128
CLONE_BATCH = 256
CLONE_RATE = 1e-3


@dataclass(frozen=True)
class Variant:
    """One dataset.

    Attributes:
        task: `door`, `pen` or `hammer`.
        kind: `human`, `expert` or `cloned`.
        limit: Steps of an episode.
        steps: Size of the full dataset.
        shard_steps: Size of a shard.
    """

    task: str
    kind: str
    limit: int
    steps: int
    shard_steps: int

    @property
    def name(self) -> str:
        """Id of the dataset."""
        return f"gem/{self.task}/{self.kind}-v0"


VARIANTS = (
    Variant("door", "human", DEMONSTRATION_LIMIT, DEMONSTRATION_STEPS, DEMONSTRATION_STEPS),
    Variant("door", "expert", 200, 1_000_000, 20_000),
    # Two passes through the demonstrations in every other shard.
    Variant("door", "cloned", DEMONSTRATION_LIMIT, 1_000_000, 2 * DEMONSTRATION_STEPS),
    Variant("pen", "expert", 100, 500_000, 20_000),
    Variant("hammer", "expert", 200, 1_000_000, 20_000),
)
CLONE_LIMIT = 200


def env_spec(variant: Variant) -> EnvSpec:
    """The environment that the data comes from."""
    return _spec(variant.task, variant.limit)


def eval_env_spec(variant: Variant) -> EnvSpec:
    """The environment that policies are scored in: D4RL's horizons."""
    return _spec(variant.task, 100 if variant.task == "pen" else 200)


def simulate(variant: Variant, shard: Shard) -> Episodes:
    """Simulate `shard.steps` steps."""
    env = make_robotics(env_spec(variant))
    try:
        if variant.kind == "expert":
            expert = HandExpert(_arrays(variant.task, "expert_policy", shard.sources))
            return _roll_out(env, expert.act, variant.limit, shard)
        if variant.kind == "cloned" and shard.index % 2 == 0:
            return _roll_out(env, _clone(shard.sources, shard.seed), CLONE_LIMIT, shard)
        return _play_demonstrations(env, shard)
    finally:
        env.close()


def reference_scores(variant: Variant, seed: int, sources: Path | None) -> References:
    """Random actions, and the expert without noise, over D4RL's horizon."""
    return _scores_of_task(variant.task, seed, sources)


@lru_cache
def _scores_of_task(task: str, seed: int, sources: Path | None) -> References:
    variant = next(v for v in VARIANTS if v.task == task)
    act = HandExpert(_arrays(variant.task, "expert_policy", sources)).act

    def expert(env: gym.Env[Any, Any], episode: int) -> references.Actor:
        return lambda observation: act(observation, None).astype(np.float32)

    return references.measure(eval_env_spec(variant), expert, seed)


def _roll_out(
    env: gym.Env[Any, Any],
    act: Callable[[Array, np.random.Generator], Array],
    limit: int,
    shard: Shard,
) -> Episodes:
    inner: Any = env.unwrapped
    rng = np.random.default_rng([shard.seed, shard.index, 1])
    recorder, time = EpisodeRecorder(), 0
    observation: Any = None
    for step in range(shard.steps):
        if time == 0:
            seed = references.episode_seed(shard.seed, shard.index, step)
            observation, _ = inner.reset(seed=seed)
            recorder.begin(observation, _state(inner, False))
        action = act(observation, rng).astype(np.float32)
        observation, reward, _, _, info = inner.step(action)
        time = (time + 1) % limit
        recorder.step(
            action, float(reward), False, time == 0, observation, _state(inner, info["success"])
        )
    return recorder.finish()


def _play_demonstrations(env: gym.Env[Any, Any], shard: Shard) -> Episodes:
    inner: Any = env.unwrapped
    demos = _arrays("door", "human_demos", shard.sources)
    stops = np.cumsum(demos["episode_lengths"])
    # As D4RL does: the environment would clip them anyway.
    actions = np.clip(demos["actions"], -1.0, 1.0).astype(np.float32)
    recorder, left = EpisodeRecorder(), shard.steps
    while left > 0:
        for number, stop in enumerate(stops):
            played = min(int(demos["episode_lengths"][number]), left)
            if played == 0:
                break
            inner.reset(seed=references.episode_seed(shard.seed, number))
            inner.set_env_state(
                {
                    "qpos": demos["init_qpos"][number],
                    "qvel": demos["init_qvel"][number],
                    "door_body_pos": demos["init_door_body_pos"][number],
                }
            )
            recorder.begin(inner._get_obs(), _state(inner, False))
            start = int(stop - demos["episode_lengths"][number])
            for t in range(played):
                observation, reward, _, _, info = inner.step(actions[start + t])
                recorder.step(
                    actions[start + t],
                    float(reward),
                    False,
                    t + 1 == played,
                    observation,
                    _state(inner, info["success"]),
                )
            left -= played
    return recorder.finish()


@lru_cache(maxsize=1)
def _clone(sources: Path | None, seed: int) -> Callable[[Array, np.random.Generator], Array]:
    """Clone the demonstrations as they play here: mean by regression, std from the residuals."""
    shard = Shard(0, DEMONSTRATION_STEPS, 0, sources)
    human = simulate(VARIANTS[0], shard)
    rows = np.arange(human.steps) + np.repeat(np.arange(len(human)), human.lengths)
    observations = torch.from_numpy(human.observations[""][rows]).float()
    actions = torch.from_numpy(human.actions)
    center, scale = observations.mean(0), observations.std(0) + 1e-3
    inputs = (observations - center) / scale
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(inputs.shape[1], CLONE_WIDTH), nn.Tanh()]
        layers += [nn.Linear(CLONE_WIDTH, CLONE_WIDTH), nn.Tanh()]
        net = nn.Sequential(*layers, nn.Linear(CLONE_WIDTH, actions.shape[1]))
        optimizer = torch.optim.Adam(net.parameters(), lr=CLONE_RATE)
        for _ in range(CLONE_EPOCHS):
            for batch in torch.split(torch.randperm(len(inputs)), CLONE_BATCH):
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(net(inputs[batch]), actions[batch])
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own gap
                optimizer.step()
    with torch.no_grad():
        std = (net(inputs) - actions).std(0).numpy()

    def act(observation: Array, rng: np.random.Generator) -> Array:
        with torch.no_grad():
            mean = net((torch.from_numpy(observation).float() - center) / scale).numpy()
        action: Array = np.clip(mean + std * rng.standard_normal(std.shape), -1.0, 1.0)
        return action

    return act


def _arrays(task: str, what: str, sources: Path | None) -> dict[str, Array]:
    return read_arrays(sources, f"hand_dapg/{task}_{what}.npz")


def _state(env: Any, success: Any) -> dict[str, Any]:
    return {**env.get_env_state(), "success": bool(success)}


def _spec(task: str, limit: int) -> EnvSpec:
    env = make_robotics(f"AdroitHand{task.capitalize()}-v1", max_episode_steps=limit)
    env.close()
    if env.spec is None:
        raise DatasetError(f"AdroitHand{task.capitalize()}-v1 has no specification.")
    env.spec.disable_env_checker = False
    return env.spec


_WORDS = {
    "human": "The 25 human demonstrations of opening the door, played again from their recorded "
    "states with their actions clipped to [-1, 1]; observations and rewards are the simulator's. "
    "An episode is cut after its last action.",
    "expert": "Sampled, clipped actions of the expert policies that D4RL sampled, in episodes of "
    "D4RL's length (200 steps; pen 100). Nothing terminates.",
    "cloned": "Half of the data is sampled from a policy cloned from the human demonstrations, in "
    "episodes of 200 steps; the other half is the demonstrations again and again, so that "
    "nearly half of all steps are repetitions.",
}


def _recipe(variant: Variant) -> Recipe:
    return Recipe(
        name=variant.name,
        summary=f"Adroit hand, {variant.task}, {variant.kind}",
        description=(
            f"{_WORDS[variant.kind]} Made in AdroitHand{variant.task.capitalize()}-v1 after D4RL's "
            f"{variant.task}-{variant.kind} and Minari's D4RL/{variant.task}/{variant.kind}. "
            "Reference scores were measured here over the horizon of the evaluation environment "
            "and are not D4RL's."
        ),
        simulate=partial(simulate, variant),
        env_spec=partial(env_spec, variant),
        eval_env_spec=partial(eval_env_spec, variant),
        references=partial(reference_scores, variant),
        algorithm={
            "human": "human demonstrations",
            "expert": "natural policy gradient with demonstrations, sampled",
            "cloned": "behavior cloning, sampled, and human demonstrations",
        }[variant.kind],
        steps=variant.steps,
        shard_steps=variant.shard_steps,
        turns=2 if variant.kind == "cloned" else 1,
        credits="Policies and demonstrations: hand_dapg (Rajeswaran et al., 2018, Apache-2.0). "
        "Recipe: D4RL, Minari.",
        needs_sources=True,
    )


RECIPES = tuple(_recipe(variant) for variant in VARIANTS)
