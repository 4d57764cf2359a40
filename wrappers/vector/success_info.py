"""SuccessInfo for vector environments."""

from __future__ import annotations

from typing import Any

import numpy as np

from gem_policy.config import plain
from gem_policy.wrappers.vector.episodes import EpisodeWrapper, Flags, Step, Vectors


class SuccessInfo(EpisodeWrapper):
    """Copies ``infos["success"]`` to ``infos["is_success"]``.

    `gem_policy.wrappers.SuccessInfo` says why, and what ``ever`` means. ``infos`` holds::

        infos["is_success"] = array (envs,) of bool
        infos["_is_success"] = array (envs,) of bool, where the environment has said anything

    and the same in ``infos["final_info"]`` of SAME_STEP environments, for the episodes that ended.

    Args:
        env: The vector environment.
        ever: True: success at any step of the episode so far. False: at this very step.

    Raises:
        SpaceError: The environment names no autoreset mode.
    """

    def __init__(self, env: Vectors, ever: bool | np.bool_ = True) -> None:
        super().__init__(env)
        self._ever = plain(ever)
        self._said: Flags = np.zeros(self.num_envs, np.bool_)
        self._succeeded: Flags = np.zeros(self.num_envs, np.bool_)

    def step(self, actions: Any) -> Step:
        """Step all sub-environments."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        final = infos.get("final_info")
        if final is not None:
            # The step that ended the episode: its info is here, the rest is of the next one.
            self._say(final, infos["_final_info"])
        begun = self._over(terminations, truncations)
        self._forget(begun)
        self._say(infos, np.ones(self.num_envs, np.bool_))
        return observations, rewards, terminations, truncations, infos

    def _began(self, observations: Any, infos: dict[str, Any], where: Flags) -> Any:
        self._forget(where)
        self._say(infos, where)
        return observations

    def _forget(self, where: Flags) -> None:
        self._said = self._said & ~where
        self._succeeded = self._succeeded & ~where

    def _say(self, infos: dict[str, Any], where: Flags) -> None:
        """Add what is known about the sub-environments ``where``."""
        now = np.asarray(infos.get("success", np.zeros(self.num_envs)), dtype=np.bool_)
        told = np.asarray(infos.get("_success", np.full(self.num_envs, "success" in infos)))
        told = told.astype(np.bool_) & where
        before = self._succeeded if self._ever else np.zeros_like(self._succeeded)
        self._said = self._said | told
        self._succeeded = np.where(where, (now & told) | before, self._succeeded)
        known = self._said & where
        if known.any():
            infos["is_success"] = self._succeeded & known
            infos["_is_success"] = known
