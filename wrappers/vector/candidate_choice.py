"""CandidateChoice for vector environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import batch_space

from gem_policy.wrappers.candidate_choice import Count, pick, read_count, read_ranks, unpicked
from gem_policy.wrappers.policy_wrapper import PolicySource
from gem_policy.wrappers.records import Record
from gem_policy.wrappers.vector.episodes import Flags, Step, Vectors
from gem_policy.wrappers.vector.policy_wrapper import PolicyWrapper


class CandidateChoice(PolicyWrapper):
    """Makes each action the rank of a candidate, so that an agent learns to choose among them.

    `gem_policy.wrappers.CandidateChoice` says how, and draws the entries; here each is an array::

        infos["gem"]["candidate"] = {"rank": array (envs,), ..., "action": array (envs, A)}
        infos["_gem"] = array (envs,) of bool, False where the environment ignored the action

    Args:
        env: The vector environment; its single spaces must be the policy's.
        policy: Name, path, ``hf://`` address or a loaded policy.
        candidates: N, the size of the new single action space; None for the policy's setting.
        selection: Changes to the selection settings of a policy given by name or path.

    Raises:
        ConfigError: `candidates` is below 1.
        SpaceError: The spaces are not the policy's, or the environment names no autoreset mode.
        CheckpointError: There is no such policy.
    """

    def __init__(
        self,
        env: Vectors,
        policy: PolicySource,
        candidates: Count | None = None,
        selection: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(env, policy, selection)
        self.candidates = read_count(candidates, self.policy)
        self.single_action_space = gym.spaces.Discrete(self.candidates)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def step(self, actions: Any) -> Step:
        """Step with the candidates of the given ranks.

        Raises:
            SpaceError: The actions are no ranks, or an observation is not finite.
            ResetNeeded: Nobody has called reset.
        """
        ranks = read_ranks(actions, self.candidates, (self.num_envs,))
        rows, active = self._seen(), ~self.ignoring
        space = self.policy.action_space
        record = unpicked(self.policy, self.num_envs)
        # What is ignored must still be an action.
        sent = np.repeat(space.low[None], self.num_envs, axis=0)
        if active.any():
            sent[active], record = pick(
                self.policy, rows[active], ranks[active], self.candidates, active
            )
        observations, rewards, terminations, truncations, infos = self.env.step(sent)
        self._over(terminations, truncations)
        self._remember(observations)
        self._add(infos, record, active)
        return observations, rewards, terminations, truncations, infos

    def _blank(self, where: Flags) -> Record:
        return unpicked(self.policy, self.num_envs)
