"""Stand-ins that need no training: tiny random policies, and environments that follow a script."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from scipy import stats
from torch import Tensor

from gem_policy.checkpoint import CALIBRATION_POINTS, Checkpoint, PolicyConfig
from gem_policy.config import NetworkConfig, SelectionConfig
from gem_policy.critics import build_critics
from gem_policy.mixture import GaussianMixture
from gem_policy.networks import build_actor, build_behavior
from gem_policy.policy import GEMPolicy
from gem_policy.spaces import observation_size

Space = gym.spaces.Space[Any]
CPU = torch.device("cpu")


def _free(*shape: int, dtype: type = np.float64) -> gym.spaces.Box:
    return gym.spaces.Box(-np.inf, np.inf, shape, dtype)  # type: ignore[arg-type]


BOX = _free(3, dtype=np.float32)
GOAL = gym.spaces.Dict(
    {"observation": _free(4), "achieved_goal": _free(2), "desired_goal": _free(2)}
)
NESTED = gym.spaces.Dict(
    collections.OrderedDict(
        zebra=_free(2, 2, dtype=np.float32),
        arm=gym.spaces.Dict(
            collections.OrderedDict(wrist=_free(1), elbow=gym.spaces.Box(0, 255, (2,), np.uint8))
        ),
    )
)
SPACES: dict[str, Space] = {"box": BOX, "matrix": _free(2, 2), "goal": GOAL, "nested": NESTED}
# Neither symmetric nor the same in both dimensions, so that a mixed-up scale shows.
ACTIONS = gym.spaces.Box(
    np.array([-1.0, 0.25], np.float32), np.array([1.0, 4.0], np.float32), dtype=np.float32
)
GAIN_UNIT = 0.25  # not 1, so that one that is forgotten shows
NETWORK = {
    "actor_components": 3,
    "behavior_components": 2,
    "critics": 3,
    "actor_hidden": (8,),
    "behavior_hidden": (8,),
    "critic_hidden": (8, 8),
    "critic_lookahead": False,
}


def tiny_checkpoint(
    observation_space: Space = BOX,
    action_space: gym.spaces.Box = ACTIONS,
    *,
    seed: int = 0,
    network: Mapping[str, Any] | None = None,
    selection: SelectionConfig | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """A complete checkpoint for any spaces, its weights random but a function of the seed."""
    size = observation_size(observation_space)
    config = NetworkConfig(
        **{
            **NETWORK,
            "observation_size": size,
            "action_size": action_space.shape[0],
            **(network or {}),
        }
    )
    generator = torch.Generator().manual_seed(seed)
    modules = {
        "actor": build_actor(config, generator),
        "behavior": build_behavior(config, generator),
        "critic": build_critics(config, generator),
    }
    tensors: dict[str, Tensor] = {
        f"{name}.{key}": value.detach().clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    tensors["observation.mean"] = torch.randn(size, generator=generator)
    tensors["observation.std"] = torch.rand(size, generator=generator) + 0.5
    tensors["action.low"] = torch.as_tensor(action_space.low, dtype=torch.float32)
    tensors["action.high"] = torch.as_tensor(action_space.high, dtype=torch.float32)
    tensors["calibration.log_behavior"] = torch.linspace(-8, 2, CALIBRATION_POINTS)
    chosen = SelectionConfig(candidates=12) if selection is None else selection
    policy = PolicyConfig(config, chosen, observation_space, action_space, GAIN_UNIT)
    return Checkpoint(policy, tensors, provenance or {"dataset_id": "test/tiny-v0"})


def tiny_policy(
    observation_space: Space = BOX, action_space: gym.spaces.Box = ACTIONS, **kwargs: Any
) -> GEMPolicy:
    """`tiny_checkpoint` as a policy on the CPU."""
    return GEMPolicy(tiny_checkpoint(observation_space, action_space, **kwargs), CPU)


def decide_otherwise(policy: GEMPolicy, rows: Tensor) -> None:
    """Every way to decide that a compiled policy does not compile; it is left with its mode."""
    policy.predict(rows.numpy(), deterministic=False)
    policy.decide(rows, torch.Generator().manual_seed(0))
    policy.decide(rows, count=3)
    policy.explain(rows[0].numpy())
    policy.selection = policy.selection.replace(candidates=1)
    policy.predict(rows.numpy(), deterministic=True)


def sample(space: Space, rng: np.random.Generator, batch: tuple[int, ...] = ()) -> Any:
    """Elements of a space with batch axes in front; moderate numbers where it is unbounded."""
    if isinstance(space, gym.spaces.Dict):
        return {key: sample(inner, rng, batch) for key, inner in space.spaces.items()}
    assert isinstance(space, gym.spaces.Box)
    shape = (*batch, *space.shape)
    if np.issubdtype(space.dtype, np.integer):
        return rng.integers(0, 200, shape).astype(space.dtype)
    values = rng.standard_normal(shape).astype(space.dtype)
    return np.clip(values, space.low, space.high)


def row_of(observation: Any, index: int) -> Any:
    """One observation of a batch."""
    if isinstance(observation, Mapping):
        return {key: row_of(value, index) for key, value in observation.items()}
    return observation[index]


def rows_of(observation: Any, index: Any) -> Any:
    """Some observations of a batch, by a list of numbers or a slice."""
    return row_of(observation, index)


class ScriptedEnv(gym.Env[Any, Any]):
    """Pays `rewards` step by step and then ends, whatever is done; observations are random.

    Attributes:
        actions: What was done in the present episode.
        seeds: Seeds that `reset` was called with.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        observation_space: Space = BOX,
        action_space: gym.spaces.Box = ACTIONS,
        rewards: Sequence[float] = (1.0, 0.0, 2.0),
        success_at: int | None = None,
        terminates: bool = False,
        reports_success: bool = True,
        reward_of_seed: bool = False,
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.rewards, self.success_at = list(rewards), success_at
        self.terminates, self.reports_success = terminates, reports_success
        self.reward_of_seed = reward_of_seed
        self.actions: list[Any] = []
        self.seeds: list[int | None] = []
        self.bonus = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        if seed is not None and self.reward_of_seed:
            self.bonus = float(seed)
        self.actions = []
        return sample(self.observation_space, self.np_random), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.actions.append(np.array(action))
        done = len(self.actions) == len(self.rewards)
        reward = self.rewards[len(self.actions) - 1] + self.bonus
        # As the mazes do: true in the step of success, not for ever after it.
        info = {"success": len(self.actions) == self.success_at} if self.reports_success else {}
        ends = (done and self.terminates, done and not self.terminates)
        return sample(self.observation_space, self.np_random), reward, *ends, info


class LinearEnv(gym.Env[Any, Any]):
    """Pays for actions near a fixed one: an agent can learn it, and good and bad ones differ."""

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, steps: int = 5, best: float = 0.5) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.steps, self.best, self.t = steps, best, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return sample(self.observation_space, self.np_random), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        reward = -float((action[0] - self.best) ** 2)
        observation = sample(self.observation_space, self.np_random)
        return observation, reward, False, self.t == self.steps, {"is_success": reward > -0.01}


# Four components, one of them without weight.
MIXTURE = GaussianMixture(
    torch.tensor([0.3, -0.7, -1e30, 1.0]),
    torch.tensor([[-0.8], [0.1], [9.0], [0.6]]),
    torch.tensor([[-2.0], [-1.0], [0.0], [-3.0]]),
)


def distribution_function(mixture: GaussianMixture, x: np.ndarray[Any, Any]) -> Any:
    """Share of a one-dimensional mixture that lies below each x."""
    weights = torch.softmax(mixture.logits.double(), -1).numpy()
    mean, std = mixture.mean[:, 0].double().numpy(), mixture.log_std[:, 0].double().exp().numpy()
    return (weights * stats.norm.cdf(np.atleast_1d(x)[:, None], mean, std)).sum(-1)
