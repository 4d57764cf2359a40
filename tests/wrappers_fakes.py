"""Tiny random checkpoints and small environments for the tests of the wrappers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict

from gem_policy import GEMPolicy
from gem_policy.checkpoint import Checkpoint, PolicyConfig, save
from gem_policy.config import NetworkConfig, SelectionConfig
from gem_policy.critics import build_critics
from gem_policy.networks import build_actor, build_behavior
from gem_policy.spaces import observation_size

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float64)
ACTIONS = Box(np.float32([-1, -2]), np.float32([1, 2]))
GOALS = Dict(
    {
        "observation": Box(-np.inf, np.inf, (4,), np.float64),
        "achieved_goal": Box(-np.inf, np.inf, (2,), np.float64),
        "desired_goal": Box(-np.inf, np.inf, (2,), np.float64),
    }
)


def random_checkpoint(
    observation_space: gym.Space[Any] = OBSERVATIONS,
    action_space: Box = ACTIONS,
    *,
    seed: int = 0,
    selection: SelectionConfig | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """A policy with random networks, whose data its actor made, and calibrated on such data."""
    generator = torch.Generator().manual_seed(seed)
    size = observation_size(observation_space)
    network = NetworkConfig(
        size,
        action_space.shape[0],
        actor_components=3,
        behavior_components=3,
        critics=2,
        actor_hidden=(8,),
        behavior_hidden=(8,),
        critic_hidden=(8,),
        critic_lookahead=False,
        max_std=0.5,
    )
    modules = {
        "actor": build_actor(network, generator),
        "behavior": build_behavior(network, generator),
        "critic": build_critics(network, generator),
    }
    rows = torch.randn(4000, size, generator=generator)
    modules["behavior"].load_state_dict(modules["actor"].state_dict())
    with torch.no_grad():
        mixture = modules["behavior"](rows)
        density = mixture.log_prob(mixture.sample(1, generator).clamp(-1, 1)).flatten()
    tensors = {
        f"{name}.{key}": value.detach().clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    tensors |= {
        "observation.mean": torch.zeros(size),
        "observation.std": torch.ones(size),
        "action.low": torch.as_tensor(action_space.low, dtype=torch.float32),
        "action.high": torch.as_tensor(action_space.high, dtype=torch.float32),
        "calibration.log_behavior": torch.quantile(density, torch.linspace(0, 1, 1001)),
    }
    selection = selection or SelectionConfig(candidates=6)
    config = PolicyConfig(network, selection, observation_space, action_space)
    return Checkpoint(config, tensors, provenance or {"dataset_id": "test/random-v0"})


def random_policy(*args: Any, **kwargs: Any) -> GEMPolicy:
    """A policy that was not loaded from anywhere."""
    return GEMPolicy(random_checkpoint(*args, **kwargs), torch.device("cpu"))


def write_policy(folder: Path, *args: Any, **kwargs: Any) -> Path:
    """A random checkpoint as a file."""
    path = folder / "model.safetensors"
    save(random_checkpoint(*args, **kwargs), path)
    return path


class Pond(gym.Env[Any, Any]):
    """A float drifting where it is pushed; succeeds near the origin; ends after `length` steps.

    Remembers in `received` every action that reached it.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        length: int = 5,
        observation_space: gym.Space[Any] = OBSERVATIONS,
        action_space: Box = ACTIONS,
        says_success: bool = True,
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.length, self.says_success = length, says_success
        self.received: list[Any] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.state = self.np_random.standard_normal(observation_size(self.observation_space))
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.received.append(action)
        self.steps += 1
        push = np.resize(np.asarray(action, dtype=np.float64), self.state.shape)
        self.state = 0.9 * self.state + 0.1 * push
        reward = float(-np.square(self.state).sum())
        return self._observation(), reward, False, self.steps >= self.length, self._info()

    def _observation(self) -> Any:
        return gym.spaces.unflatten(self.observation_space, self.state.copy())

    def _info(self) -> dict[str, Any]:
        return {"success": self.steps == 2} if self.says_success else {}


class UnitPond(Pond):
    """Its actions have the bounds that SB3's check asks for."""

    def __init__(self) -> None:
        super().__init__(action_space=Box(-1.0, 1.0, (2,), np.float32))


class GoalPond(Pond):
    """Its observations are those of a goal environment."""

    def __init__(self, length: int = 5) -> None:
        super().__init__(length, GOALS)


for pond in (Pond, UnitPond, GoalPond):
    gym.register(f"Gem{pond.__name__}-v0", f"{__name__}:{pond.__name__}", max_episode_steps=50)


def roll(env: gym.Env[Any, Any], actions: list[Any], seed: int = 0) -> list[Any]:
    """Everything that an environment returns for the actions, reset where an episode ends."""
    out: list[Any] = [env.reset(seed=seed)]
    for action in actions:
        out.append(env.step(action))
        if out[-1][2] or out[-1][3]:
            out.append(env.reset())
    return out


def without_gem(results: list[Any]) -> list[Any]:
    """The same without ``info["gem"]``."""
    return [
        (*rest, {k: v for k, v in info.items() if k not in ("gem", "_gem")})
        for *rest, info in results
    ]


def plain(value: Any) -> Any:
    """The same, to the bit, in a form that `==` compares."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(entry) for entry in value]
    return type(value), repr(value)
