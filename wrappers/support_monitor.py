"""SupportMonitor: how well the data supports what an agent does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy.policy import GEMPolicy
from gem_policy.wrappers.policy_wrapper import (
    PolicySource,
    PolicyWrapper,
    read_actions,
    resets_next,
    write_actions,
)
from gem_policy.wrappers.records import Record, add, first, spread

NUMBERS = ("log_beta", "percentile", "q_mean", "q_std", "lcb")


def judge(
    policy: GEMPolicy, rows: Float[Tensor, "envs obs"], actions: Float[Tensor, "envs action"]
) -> Record:
    """What the policy thinks of the actions, and of the ones that it would take itself.

    Args:
        policy: The judge.
        rows: Flattened observations, environment units.
        actions: What an agent wants to do there, environment units.
    """
    choice = policy.decide(rows).action
    seen = policy.assess(rows, torch.stack((actions, choice), dim=-2))
    table = torch.stack([getattr(seen, name) for name in NUMBERS], -1).double().cpu().numpy()
    component = seen.component.cpu().numpy()
    own, other = (
        {name: table[:, side, k] for k, name in enumerate(NUMBERS)}
        | {"component": component[:, side]}
        for side in (0, 1)
    )
    gap = policy.scaler.apply(actions) - policy.scaler.apply(choice)
    distance = gap.square().sum(-1).sqrt()
    distance = torch.where(distance.isfinite(), distance, torch.nan)
    other["distance"] = distance.double().cpu().numpy()
    other["action"] = write_actions(choice, policy)
    return own | {"choice": other}


def unjudged(policy: GEMPolicy, envs: int) -> Record:
    """The record of environments where nobody has acted."""
    numbers = {name: np.empty(0) for name in NUMBERS} | {"component": np.empty(0, np.int64)}
    action = np.empty((0, *policy.action_space.shape), policy.action_space.dtype)
    choice = numbers | {"distance": np.empty(0), "action": action}
    return spread(numbers | {"choice": choice}, np.zeros(envs, dtype=np.bool_))


class SupportMonitor(PolicyWrapper):
    """Says in ``info["gem"]`` how well the data supports each action, whatever agent acts.

    Changes nothing else: a rollout with it is identical to one without. Vector twin:
    `gem_policy.wrappers.vector.SupportMonitor`.

    After a step, ``info`` holds::

        info["gem"] = {
            "log_beta": float,    # log density of the action under the behavior model, in nats
            "percentile": float,  # percent of the dataset's own actions that are less likely
            "q_mean": float,      # mean of the critics, in scaled reward
            "q_std": float,       # their standard deviation
            "lcb": float,         # q_mean - kappa * q_std
            "component": int,     # the actor's mixture component that the action belongs to
            "choice": {           # what the policy would have done instead
                "log_beta", "percentile", "q_mean", "q_std", "lcb", "component",  # as above
                "distance": float,  # to the action; each dimension of the box is 2 long
                "action": array of shape action_space.shape, environment units
            },
        }

    After a reset, also of a `gymnasium.wrappers.Autoreset` inside, there is no action to judge: the
    numbers are NaN, components -1; as they are after a step from an observation, or with an action,
    that is not finite.

    Args:
        env: The environment; its spaces must be the policy's.
        policy: Name, path, ``hf://`` address or a loaded policy.
        selection: Changes to the selection settings of a policy given by name or path.

    Raises:
        SpaceError: The environment's spaces are not the policy's.
        CheckpointError: There is no such policy.

    Example::

        env = SupportMonitor(make_env(policy), policy)
        observation, info = env.reset()
        *_, info = env.step(env.action_space.sample())
        info["gem"]["percentile"]
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        policy: PolicySource,
        selection: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(env, policy, selection)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; ``info["gem"]`` is there, and blank."""
        observation, info = super().reset(seed=seed, options=options)
        add(info, first(unjudged(self.policy, 1)))
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step with the action as it is, and say what it was.

        Raises:
            SpaceError: The action has another shape than the action space.
            ResetNeeded: Nobody has called reset.
        """
        given, rows = read_actions(action, self.policy, ()), self._seen()
        ignored = resets_next(self.env)
        record = unjudged(self.policy, 1) if ignored else judge(self.policy, rows, given)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._remember(observation)
        add(info, first(record))
        return observation, reward, terminated, truncated, info
