"""For code that insists on Stable-Baselines3's own types; its evaluation needs nothing from here.

`evaluate_policy`, vector environments and monitors take a policy as it is. Two things do not:

- code that asks for a ``BasePolicy`` (imitation's rollouts): give it ``SB3Policy(policy)``;
- callbacks, which ask for an algorithm: ``SB3Model(policy, env).play(steps, EvalCallback(...))``
  plays the policy in ``env`` and calls them as ``learn`` would. The best model that an
  ``EvalCallback`` saves is a folder that `GEMPolicy.load` reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from gem_policy.config import require_number
from gem_policy.errors import CheckpointError, DependencyError, SpaceError
from gem_policy.policy import GEMPolicy
from gem_policy.predictor import Predictor, State
from gem_policy.spaces import describe_difference

try:
    from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.policies import BasePolicy
    from stable_baselines3.common.vec_env import (
        DummyVecEnv,
        VecEnv,
        VecNormalize,
        unwrap_vec_normalize,
    )
except ImportError as error:
    raise DependencyError(
        "gem_policy.sb3 needs Stable-Baselines3: pip install 'gem-policy[sb3]'",
        name="stable_baselines3",
    ) from error


class SB3Policy(BasePolicy):
    """A policy as an SB3 ``BasePolicy``: every decision is the wrapped policy's own.

    Args:
        predictor: What acts.
    """

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(predictor.observation_space, predictor.action_space)
        self.predictor = predictor

    @property
    def device(self) -> torch.device:
        """Where the wrapped policy computes."""
        return self.predictor.device

    def predict(
        self,
        observation: Any,
        state: State = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """`Predictor.predict`."""
        return self.predictor.predict(observation, state, episode_start, deterministic)

    def _predict(self, observation: Any, deterministic: bool = False) -> Float[Tensor, "*action"]:
        """The same from tensors, on any device, to tensors on the policy's."""
        if isinstance(observation, dict):
            observation = {key: value.cpu() for key, value in observation.items()}
        else:
            observation = observation.cpu()
        actions, _ = self.predict(observation, deterministic=deterministic)
        return torch.as_tensor(actions, device=self.device)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the wrapped policy's generator."""
        self.predictor.set_random_seed(seed)

    def save(self, path: str | Path) -> None:
        """`GEMPolicy.save`: safetensors, not SB3's pickle.

        Raises:
            CheckpointError: The wrapped policy is none that can be saved.
        """
        if not isinstance(self.predictor, GEMPolicy):
            raise CheckpointError(
                f"A {type(self.predictor).__name__} cannot be saved; save the GEMPolicy it uses."
            )
        self.predictor.save(path)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "auto") -> SB3Policy:
        """`GEMPolicy.load`, adapted."""
        return cls(GEMPolicy.load(path, device=device))


class SB3Model:
    """What SB3's callbacks expect of an algorithm, around a policy that no longer learns.

    Args:
        predictor: What acts.
        env: Where `play` plays: an environment or SB3 vector environment with raw observations.

    Raises:
        SpaceError: The environment's spaces are not the policy's, or its observations are
            normalized already.
    """

    def __init__(self, predictor: Predictor, env: gym.Env[Any, Any] | VecEnv) -> None:
        self.env = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
        differences = [
            *describe_difference(predictor.observation_space, self.env.observation_space),
            *describe_difference(predictor.action_space, self.env.action_space),
        ]
        if differences:
            raise SpaceError("The environment is not the policy's: " + "; ".join(differences))
        normalize = self.get_vec_normalize_env()
        if normalize is not None and normalize.norm_obs:
            raise SpaceError(
                "The environment is in a VecNormalize, and the policy normalizes observations "
                "itself. Use the environment without it, or with norm_obs=False."
            )
        self.policy = SB3Policy(predictor)
        self.logger = Logger(folder=None, output_formats=[])
        self.num_timesteps = 0

    @property
    def observation_space(self) -> gym.Space[Any]:
        """The policy's."""
        return self.policy.observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """The policy's."""
        return self.policy.action_space

    @property
    def device(self) -> torch.device:
        """Where the policy computes."""
        return self.policy.device

    def get_env(self) -> VecEnv:
        """The vector environment that `play` plays in."""
        return self.env

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """The wrapper that scales the rewards, if there is one."""
        return unwrap_vec_normalize(self.env)

    def set_logger(self, logger: Logger) -> None:
        """Log there, such as to what ``stable_baselines3.common.logger.configure`` gives."""
        self.logger = logger

    def dump_logs(self) -> None:
        """Write what was logged; callbacks call it."""
        self.logger.dump(self.num_timesteps)

    def predict(
        self,
        observation: Any,
        state: State = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """`Predictor.predict`."""
        return self.policy.predict(observation, state, episode_start, deterministic)

    def save(self, path: str | Path) -> None:
        """`GEMPolicy.save`."""
        self.policy.save(path)

    def play(
        self,
        steps: float,
        callback: BaseCallback | list[BaseCallback] | Callable[..., bool] | None = None,
        deterministic: bool = True,
    ) -> None:
        """Act for that many steps, or until a callback says stop; nothing is learned.

        Args:
            steps: Steps in all, over all sub-environments.
            callback: SB3 callbacks, called after every step of the vector environment; a function
                of locals and globals is called likewise.
            deterministic: Passed to ``predict``.

        Raises:
            ConfigError: The number of steps is none.
        """
        require_number("steps", steps, "a finite number >= 0", 0, math.inf)
        if callback is None or isinstance(callback, list):
            called: BaseCallback = CallbackList(callback or [])
        elif isinstance(callback, BaseCallback):
            called = callback
        else:
            called = ConvertCallback(callback)
        called.init_callback(self)  # type: ignore[arg-type]  # all that callbacks use is here
        self.num_timesteps = 0
        # By the name that `learn` has for it: progress bars ask.
        called.on_training_start({**locals(), "total_timesteps": steps}, globals())
        called.on_rollout_start()
        observations = self.env.reset()
        while self.num_timesteps < steps:
            actions, _ = self.predict(observations, deterministic=deterministic)
            observations, rewards, dones, infos = self.env.step(actions)
            self.num_timesteps += self.env.num_envs
            seen = {"self": self, "actions": actions, "new_obs": observations}
            called.update_locals({**seen, "rewards": rewards, "dones": dones, "infos": infos})
            if not called.on_step():
                break
        called.on_training_end()
