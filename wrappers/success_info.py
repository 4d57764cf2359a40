"""SuccessInfo: ``is_success``, the name under which Stable-Baselines3 looks for success."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from gem_policy.config import plain


class SuccessInfo(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Copies ``info["success"]`` to ``info["is_success"]``.

    SB3's `EvalCallback` and its training logs read ``is_success`` at the last step of an episode.
    Gymnasium-Robotics' mazes and Adroit tasks say ``success``, and may have said it in the middle
    of an episode that went on. Vector twin: `gem_policy.wrappers.vector.SuccessInfo`.

    ``info`` holds, at a reset as well::

        info["is_success"] = bool

    from the first ``info["success"]`` of an episode on; nothing where the environment never says
    it, because an absent key is honest and False would not be.

    Args:
        env: The environment.
        ever: True: success at any step of the episode so far, as `gem-policy evaluate` counts it.
            False: success at this very step.
    """

    def __init__(self, env: gym.Env[Any, Any], ever: bool | np.bool_ = True) -> None:
        self._ever = plain(ever)
        RecordConstructorArgs.__init__(self, ever=self._ever)
        gym.Wrapper.__init__(self, env)
        self._succeeded: bool | None = None  # None: not said in this episode
        self._over = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; a new episode has not succeeded yet."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._succeeded, self._over = None, False
        self._say(info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._over:  # an environment that resets itself, as in gymnasium.wrappers.Autoreset
            self._succeeded = None
        self._over = bool(terminated or truncated)
        self._say(info)
        return observation, reward, terminated, truncated, info

    def _say(self, info: dict[str, Any]) -> None:
        now = bool(info["success"]) if "success" in info else None
        if now is not None or self._succeeded is not None:
            self._succeeded = bool(now) or (self._ever and bool(self._succeeded))
            info["is_success"] = self._succeeded
