"""SupportShield for vector environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gem_policy.wrappers.policy_wrapper import PolicySource, read_actions, read_numbers
from gem_policy.wrappers.records import Record
from gem_policy.wrappers.support_shield import Percentile, Shield
from gem_policy.wrappers.vector.episodes import Flags, Step, Vectors
from gem_policy.wrappers.vector.policy_wrapper import PolicyWrapper


class SupportShield(PolicyWrapper):
    """Replaces or refuses actions, of any agent, that the data does not support.

    `gem_policy.wrappers.SupportShield` says how, and draws the entries; here each is an array::

        infos["gem"]["shield"] = {"intervened": array (envs,), ..., "executed": array (envs, A)}
        infos["_gem"] = array (envs,) of bool, False where the environment ignored the action

    In mode ``"refuse"`` no sub-environment is stepped if one action is refused.

    Args:
        env: The vector environment; its single spaces must be the policy's.
        policy: Name, path, ``hf://`` address or a loaded policy.
        percentile: The threshold in percent.
        mode: ``"replace"``, ``"nearest"`` or ``"refuse"``.
        selection: Changes to the selection settings of a policy given by name or path.

    Raises:
        ConfigError: The threshold is outside [0, 100] or there is no such mode.
        SpaceError: The spaces are not the policy's, or the environment names no autoreset mode.
        CheckpointError: There is no such policy.
    """

    def __init__(
        self,
        env: Vectors,
        policy: PolicySource,
        percentile: Percentile = 1.0,
        mode: str = "replace",
        selection: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(env, policy, selection)
        self.shield = Shield(self.policy, self.num_envs, percentile, mode)

    def step(self, actions: Any) -> Step:
        """Step with the actions that are supported, and with others for the rest.

        Raises:
            SupportError: The mode is ``"refuse"`` and an action is not supported.
            SpaceError: The actions have another shape than the action space, or an observation
                that one answers to is not finite.
            ResetNeeded: Nobody has called reset.
        """
        given = read_actions(actions, self.policy, (self.num_envs,))
        rows, active = self._seen(), ~self.ignoring
        sent, record = actions, self._blank(self.ignoring)  # these begin an episode now
        if active.any():
            executed, stopped, record = self.shield.guard(rows[active], given[active], active)
            if stopped.any():
                sent = read_numbers(actions, self.policy.action_space.dtype, tuple(given.shape))
                sent[np.flatnonzero(active)[stopped]] = executed[stopped]
        observations, rewards, terminations, truncations, infos = self.env.step(sent)
        begun = self._over(terminations, truncations)
        self._remember(observations)
        self._add(infos, record, active)
        self.shield.begin(begun)
        return observations, rewards, terminations, truncations, infos

    def _blank(self, where: Flags) -> Record:
        self.shield.begin(where)
        return self.shield.blank()
