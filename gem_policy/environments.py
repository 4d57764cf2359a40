"""The environment that a policy was made for, built again from what its checkpoint says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from gem_policy.env_specs import fits_spaces, make_spec, read_spec
from gem_policy.errors import ConfigError, SpaceError
from gem_policy.policy import GEMPolicy
from gem_policy.spaces import describe_difference


def evaluation_spec(provenance: Mapping[str, Any]) -> EnvSpec:
    """The evaluation environment that a checkpoint names.

    Raises:
        SpaceError: It names none, or not in a way that can be read.
    """
    document = _description(provenance)
    if not document:
        raise SpaceError(
            "The checkpoint names no environment: its dataset did not. Build the environment "
            "yourself and use Stable-Baselines3's evaluate_policy."
        )
    return read_spec(document)


def _description(provenance: Mapping[str, Any]) -> Any:
    return provenance.get("eval_env_spec") or provenance.get("env_spec")


def make_env(policy: GEMPolicy, **kwargs: Any) -> gym.Env[Any, Any]:
    """The environment that the policy was scored in, with the right arguments.

    Args:
        policy: Whose environment.
        **kwargs: Passed on to `gymnasium.make`, for example ``render_mode="human"``.

    Raises:
        DependencyError: The environment's package is not installed; names the extra. Or nothing
            registered it: what a checkpoint calls its code is never imported, see `make_spec`.
        SpaceError: The checkpoint names no environment, it cannot be made as described, or its
            spaces are not the policy's.
        ConfigError: It is no policy.
    """
    if not isinstance(policy, GEMPolicy):
        raise ConfigError(
            f"`make_env` takes a GEMPolicy, got {policy!r}. Write make_env(GEMPolicy.load(...))."
        )
    spec = evaluation_spec(policy.provenance)
    env = make_spec(spec, **kwargs)
    if fits_spaces(_description(policy.provenance)):
        from gem_policy.wrappers import MatchSpaces

        env = MatchSpaces(env, policy)
    differences = [
        *describe_difference(policy.observation_space, env.observation_space),
        *describe_difference(policy.action_space, env.action_space),
    ]
    if differences:
        raise SpaceError(
            f"{spec.id} as installed here is not what the policy was made for: "
            + "; ".join(differences)
            + f". Versions then: {policy.provenance.get('versions')}."
        )
    return env


def env_maker(policy: GEMPolicy) -> Callable[[], gym.Env[Any, Any]]:
    """A function that makes the policy's environment, for SB3's vector environments."""
    return lambda: make_env(policy)
