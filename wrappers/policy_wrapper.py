"""What the wrappers around a policy share: taking it, recording it, reading observations for it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import SyncVectorEnv, VectorWrapper
from gymnasium.wrappers import Autoreset, NormalizeObservation
from gymnasium.wrappers.vector import NormalizeObservation as NormalizeObservations
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from gem_policy.errors import ConfigError, GEMError, GEMWarning, SpaceError
from gem_policy.policy import GEMPolicy
from gem_policy.spaces import ObservationReader, describe_difference
from gem_policy.wrappers.records import Array, plain_values

PolicySource = str | Path | GEMPolicy


class ResetNeeded(GEMError, gym.error.ResetNeeded):
    """The environment must be reset before its first step."""


def layers(env: Any) -> Iterator[Any]:
    """An environment and all that it wraps, from the outside in; vector environments as well."""
    yield env
    if isinstance(env, gym.Wrapper | VectorWrapper):
        yield from layers(env.env)
    elif isinstance(env, SyncVectorEnv):  # an asynchronous one's live in other processes
        for inner in env.envs:
            yield from layers(inner)


def resets_next(env: gym.Env[Any, Any]) -> bool:
    """Whether an `Autoreset` inside makes the next step a reset, which ignores its action."""
    return any(isinstance(layer, Autoreset) and layer.autoreset for layer in layers(env))


def take_policy(env: Any, policy: PolicySource, selection: Mapping[str, Any] | None) -> GEMPolicy:
    """The policy itself, or the one behind a name or path, to be wrapped around ``env``.

    Warns:
        GEMWarning: The environment normalizes its observations, as the policy does itself.

    Raises:
        ConfigError: It is neither, or selection settings came with a policy that has its own.
        CheckpointError: As `GEMPolicy.load`.
    """
    if any(isinstance(e, NormalizeObservation | NormalizeObservations) for e in layers(env)):
        warnings.warn(
            "The environment is in a NormalizeObservation, and the policy normalizes observations "
            "itself, so that they are normalized twice. Leave NormalizeObservation out, unless the "
            "policy's data was recorded with it.",
            GEMWarning,
            stacklevel=2,
        )
    if isinstance(policy, str | Path):
        return GEMPolicy.load(policy, **plain_values(selection or {}))
    if not isinstance(policy, GEMPolicy):
        raise ConfigError(
            f"`policy` must be a name, a path or a GEMPolicy, got {type(policy).__name__}."
        )
    if selection is not None:
        raise ConfigError(
            "`selection` goes with the name or path of a policy; a GEMPolicy has its own: write "
            "policy.selection = policy.selection.replace(...)."
        )
    return policy


def recorded(policy: PolicySource, selection: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments that make `take_policy` give the same again, as JSON."""
    if isinstance(policy, GEMPolicy):
        return {"policy": policy.source, "selection": dataclasses.asdict(policy.selection)}
    told = None if selection is None else plain_values(selection)
    return {"policy": str(policy), "selection": told}


def require_same_spaces(
    policy: GEMPolicy, observation_space: gym.Space[Any], action_space: gym.Space[Any], who: str
) -> None:
    """Refuse an environment that is not what the policy was made for.

    Raises:
        SpaceError: Names everything that differs.
    """
    differences = [
        *(
            f"observation: {d}"
            for d in describe_difference(policy.observation_space, observation_space)
        ),
        *(f"action: {d}" for d in describe_difference(policy.action_space, action_space)),
    ]
    if differences:
        raise SpaceError(
            f"{who}: the environment is not what the policy was made for: "
            + "; ".join(differences)
            + ". Put gem_policy.wrappers.MatchSpaces around it first; wrappers that change what "
            "the agent sees or does go outside."
        )


class RecordedPolicy(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """A wrapper with a policy among its arguments, which is recorded by where it came from.

    Args:
        env: The environment.
        policy: Name, path, ``hf://`` address or a loaded policy.
        selection: Changes to the selection settings of a policy that is given by name or path.
        **arguments: The other arguments to record; JSON, or numbers of numpy's.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        policy: PolicySource,
        selection: Mapping[str, Any] | None,
        **arguments: Any,
    ) -> None:
        self.policy = take_policy(env, policy, selection)
        own = plain_values(arguments)
        RecordConstructorArgs.__init__(self, **recorded(policy, selection), **own)
        gym.Wrapper.__init__(self, env)

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]  # gym.Wrapper's own is one, too
        """As of any wrapper; None around a policy that was not loaded from anywhere."""
        return None if self._saved_kwargs["policy"] is None else super().spec


class PolicyWrapper(RecordedPolicy):
    """A `RecordedPolicy` that keeps the latest observation as the policy reads it.

    Raises:
        SpaceError: The environment's spaces are not the policy's.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        policy: PolicySource,
        selection: Mapping[str, Any] | None,
        **arguments: Any,
    ) -> None:
        super().__init__(env, policy, selection, **arguments)
        require_same_spaces(
            self.policy, env.observation_space, env.action_space, type(self).__name__
        )
        self._reader = ObservationReader(self.policy.observation_space)
        self._rows: Float[Tensor, "1 obs"] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._remember(observation)
        return observation, info

    def _remember(self, observation: Any) -> None:
        """Keep a copy: environments may write the next observation into the same array."""
        rows, _ = self._reader.read(observation, finite=False)
        self._rows = torch.from_numpy(rows).to(self.policy.device)

    def _seen(self) -> Float[Tensor, "1 obs"]:
        """The observation that the next action answers to.

        Raises:
            ResetNeeded: There is none yet.
        """
        if self._rows is None:
            raise ResetNeeded("Call env.reset() before env.step(action).")
        return self._rows


def require_finite(rows: Float[Tensor, "envs obs"], who: str) -> None:
    """Refuse observations that no policy can act on.

    Raises:
        SpaceError: A value is NaN or infinite.
    """
    if not bool(torch.isfinite(rows).all()):
        raise SpaceError(
            f"{who}: the latest observation has NaN or infinite values, so that no action can be "
            "judged or chosen. Look at what the environment returned, and reset it."
        )


def read_numbers(actions: Any, dtype: Any, shape: tuple[int, ...]) -> Array:
    """Actions of an agent as a new array.

    Args:
        actions: Array, list or tensor.
        dtype: Of the new array; numbers beyond it become infinite.
        shape: What they must have.

    Raises:
        SpaceError: They are no numbers, or have another shape.
    """
    try:
        if isinstance(actions, Tensor):  # numpy reads none with a gradient, bfloat16 or a GPU
            actions = actions.detach().double().cpu().numpy()
        given = np.asarray(actions)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpaceError(f"The action cannot be made an array of numbers: {error}.") from error
    # Looked at before the cast, which would read texts as numbers, and None as NaN.
    if given.dtype.kind not in "fiub":
        raise SpaceError(f"The action must be real numbers, got dtype {given.dtype}.")
    if given.shape != shape:
        raise SpaceError(f"The action must have shape {shape}, got {given.shape}.")
    with np.errstate(over="ignore"):
        return given.astype(dtype)


def read_actions(
    actions: Any, policy: GEMPolicy, batch: tuple[int, ...]
) -> Float[Tensor, "envs action"]:
    """Actions of an agent as rows of float32, on the policy's device.

    Args:
        actions: Array, list or tensor of shape (*batch, action size), environment units.
        policy: Whose action space they are for.
        batch: () for one environment, (envs,) for a vector environment.

    Raises:
        SpaceError: They are no numbers, or have another shape.
    """
    shape = (*batch, *policy.action_space.shape)
    rows = read_numbers(actions, np.float32, shape).reshape(-1, shape[-1])
    return torch.from_numpy(rows).to(policy.device)


def write_actions(
    actions: Float[Tensor, "envs action"], policy: GEMPolicy
) -> NDArray[np.floating[Any]]:
    """Actions of the policy as arrays of its action space's dtype, inside its bounds."""
    box = policy.action_space
    # Bounds that are no float32 may have been rounded outwards.
    return np.clip(actions.cpu().numpy().astype(box.dtype), box.low, box.high)
