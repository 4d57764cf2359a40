"""SupportMonitor for vector environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gem_policy.wrappers.policy_wrapper import PolicySource, read_actions
from gem_policy.wrappers.records import Record, spread
from gem_policy.wrappers.support_monitor import judge, unjudged
from gem_policy.wrappers.vector.episodes import Flags, Step, Vectors
from gem_policy.wrappers.vector.policy_wrapper import PolicyWrapper


class SupportMonitor(PolicyWrapper):
    """Says in ``infos["gem"]`` how well the data supports each action; changes nothing else.

    `gem_policy.wrappers.SupportMonitor` draws the entries; here each is an array::

        infos["gem"] = {
            "log_beta": array (envs,), "percentile": array (envs,), ...,
            "choice": {"log_beta": array (envs,), ..., "action": array (envs, action size)},
        }
        infos["_gem"] = array (envs,) of bool, False where the environment ignored the action

    Args:
        env: The vector environment; its single spaces must be the policy's.
        policy: Name, path, ``hf://`` address or a loaded policy.
        selection: Changes to the selection settings of a policy given by name or path.

    Raises:
        SpaceError: The spaces are not the policy's, or the environment names no autoreset mode.
        CheckpointError: There is no such policy.
    """

    def __init__(
        self, env: Vectors, policy: PolicySource, selection: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(env, policy, selection)

    def step(self, actions: Any) -> Step:
        """Step with the actions as they are, and say what they were.

        Raises:
            SpaceError: The actions have another shape than the action space.
            ResetNeeded: Nobody has called reset.
        """
        given = read_actions(actions, self.policy, (self.num_envs,))
        rows, active = self._seen(), ~self.ignoring
        record = unjudged(self.policy, self.num_envs)
        if active.any():
            record = spread(judge(self.policy, rows[active], given[active]), active)
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        self._over(terminations, truncations)
        self._remember(observations)
        self._add(infos, record, active)
        return observations, rewards, terminations, truncations, infos

    def _blank(self, where: Flags) -> Record:
        return unjudged(self.policy, self.num_envs)
