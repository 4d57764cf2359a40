"""MatchSpaces for vector environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector.utils import batch_space

from gem_policy.wrappers.match_spaces import ActionConversion, Conversion, require_matching
from gem_policy.wrappers.policy_wrapper import PolicySource, take_policy
from gem_policy.wrappers.vector.episodes import EpisodeWrapper, Flags, Step, Vectors


class MatchSpaces(EpisodeWrapper):
    """Adapts the sub-environments' spaces to the policy's, or says exactly what differs.

    `gem_policy.wrappers.MatchSpaces` says what is adapted. The final observations of SAME_STEP
    environments, in ``infos["final_obs"]``, are adapted as well.

    Args:
        env: The vector environment.
        policy: Name, path, ``hf://`` address or a loaded policy.
        selection: Changes to the selection settings of a policy given by name or path.

    Raises:
        SpaceError: Something differs that cannot be adapted; the message names all of it.
        CheckpointError: There is no such policy.
    """

    def __init__(
        self, env: Vectors, policy: PolicySource, selection: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(env)
        self.policy = take_policy(env, policy, selection)
        box = require_matching(self.policy, env.single_observation_space, env.single_action_space)
        self._convert = Conversion(self.policy.observation_space, env.single_observation_space)
        self._convert_action = ActionConversion(self.policy.action_space, box)
        self.single_observation_space = self.policy.observation_space
        self.single_action_space = self.policy.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def step(self, actions: Any) -> Step:
        """Step with actions of the policy's action space.

        Raises:
            SpaceError: The actions are no numbers, or have another shape than the action space.
        """
        given = self._convert_action(actions, (self.num_envs,))
        observations, rewards, terminations, truncations, infos = self.env.step(given)
        if "final_obs" in infos:
            final = infos["final_obs"]
            infos["final_obs"] = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(infos["_final_obs"]):
                infos["final_obs"][i] = self._convert(final[i])
        return (
            self._convert(observations, (self.num_envs,)),
            rewards,
            terminations,
            truncations,
            infos,
        )

    def _began(self, observations: Any, infos: dict[str, Any], where: Flags) -> Any:
        return self._convert(observations, (self.num_envs,))
