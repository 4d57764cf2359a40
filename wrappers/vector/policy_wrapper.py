"""What the vector wrappers around a policy share: taking it, and reading observations for it."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy.spaces import ObservationReader
from gem_policy.wrappers.policy_wrapper import (
    PolicySource,
    ResetNeeded,
    require_same_spaces,
    take_policy,
)
from gem_policy.wrappers.records import Record, add
from gem_policy.wrappers.vector.episodes import EpisodeWrapper, Flags, Vectors


class PolicyWrapper(EpisodeWrapper, abc.ABC):
    """A vector wrapper that keeps the latest observations as the policy reads them.

    Raises:
        SpaceError: The sub-environments' spaces are not the policy's.
    """

    def __init__(
        self, env: Vectors, policy: PolicySource, selection: Mapping[str, Any] | None
    ) -> None:
        super().__init__(env)
        self.policy = take_policy(env, policy, selection)
        require_same_spaces(
            self.policy,
            env.single_observation_space,
            env.single_action_space,
            type(self).__name__,
        )
        self._reader = ObservationReader(self.policy.observation_space)
        self._rows: Float[Tensor, "envs obs"] | None = None

    def _began(self, observations: Any, infos: dict[str, Any], where: Flags) -> Any:
        """Read the observations; the records are blank."""
        self._remember(observations)
        self._add(infos, self._blank(where), np.zeros(self.num_envs, np.bool_))
        return observations

    @abc.abstractmethod
    def _blank(self, where: Flags) -> Record:
        """The record after a reset of the sub-environments ``where``."""

    def _remember(self, observations: Any) -> None:
        """Keep a copy: environments may write the next observations into the same array."""
        rows, _ = self._reader.read(observations, finite=False)
        self._rows = torch.from_numpy(rows).to(self.policy.device)

    def _seen(self) -> Float[Tensor, "envs obs"]:
        """The observations that the next actions answer to.

        Raises:
            ResetNeeded: There are none yet.
        """
        if self._rows is None:
            raise ResetNeeded("Call envs.reset() before envs.step(actions).")
        return self._rows

    @staticmethod
    def _add(infos: dict[str, Any], record: Record, judged: Flags) -> None:
        add(infos, record)
        infos["_gem"] = judged.copy()
