"""Environments as files describe them, made without letting the file say what code to run.

Gymnasium imports and calls whatever an `EnvSpec` names as its entry point or wrapper. A checkpoint
or dataset from elsewhere could so run any function of any module. Here its id alone counts: the
code is that which is registered under it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from dataclasses import replace
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, WrapperSpec

from gem_policy.errors import DependencyError, SpaceError

# Packages that must be imported before gym.make knows their environments, by module of the entry.
_REGISTRARS = ("gymnasium_robotics",)
# Packages whose wrappers are imported if a description asks for them.
_WRAPPERS = ("gymnasium.", "gem_policy.")
_OURS = "gem_policy.wrappers"
_FITTING = "MatchSpaces"  # of ours, the one in which the policy has no say
# What Gymnasium below 1.0 wrote besides.
_OF_OLD = ("autoreset", "apply_api_compatibility")


def read_spec(document: object) -> EnvSpec:
    """The description of an environment, from JSON text or the object in it.

    Without wrappers that hold a policy: see `without_policies`; and of Gymnasium below 1.0 too.

    Raises:
        SpaceError: It is none.
    """
    try:
        told: Any = json.loads(document) if isinstance(document, str) else document
        kept = [w for w in told.get("additional_wrappers") or [] if not _holds_a_policy(w)]
        current = {key: value for key, value in told.items() if key not in _OF_OLD}
        spec = EnvSpec.from_json(json.dumps({**current, "additional_wrappers": kept}))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        gym.error.Error,
    ) as error:
        raise SpaceError(
            f"{str(document)[:200]!r} does not describe an environment: {error!r}. Build the "
            "environment yourself."
        ) from error
    if not isinstance(spec.id, str) or not isinstance(spec.kwargs, dict):
        raise SpaceError(f"{str(document)[:200]!r} does not describe an environment.")
    return spec


def without_policies(document: dict[str, Any]) -> dict[str, Any]:
    """The description without those of our own wrappers that hold a policy.

    They are recorded with the data of whoever acted in them. Another policy's environment is none
    in which that policy has a say: a shield would earn the returns of what is to be scored. Of a
    `MatchSpaces`, which only fits spaces, it stays that there was one; see `fits_spaces`.
    """
    found = document.get("additional_wrappers")
    if not found:
        return document
    blank = {"policy": None, "selection": None}
    kept = [
        {**wrapper, "kwargs": blank} if _holds_a_policy(wrapper) else wrapper
        for wrapper in found
        if not _holds_a_policy(wrapper) or wrapper["name"] == _FITTING
    ]
    return {**document, "additional_wrappers": kept}


def fits_spaces(document: object) -> bool:
    """Whether the environment's spaces were fitted to a policy's, as `MatchSpaces` does.

    Args:
        document: One that `read_spec` can read.
    """
    told: Any = json.loads(document) if isinstance(document, str) else document
    found = told.get("additional_wrappers") or []
    return any(_holds_a_policy(w) and w["name"] == _FITTING for w in found)


def _holds_a_policy(wrapper: dict[str, Any]) -> bool:
    arguments = wrapper["kwargs"]
    ours = str(wrapper["entry_point"]).startswith(_OURS)
    return ours and isinstance(arguments, dict) and "policy" in arguments


def make_spec(spec: EnvSpec, **kwargs: Any) -> gym.Env[Any, Any]:
    """`gymnasium.make` of a description, by the code registered under its id.

    Raises:
        DependencyError: A package is missing, or nothing is registered under the id.
        SpaceError: It asks for a wrapper that is not known here, or the environment as installed
            does not take its arguments.
    """
    try:
        return gym.make(registered(spec), **kwargs)
    except (ImportError, gym.error.DependencyNotInstalled, gym.error.UnregisteredEnv) as error:
        raise DependencyError(
            f"{spec.id} cannot be made: {error}. Install its packages: "
            "pip install 'gem-policy[envs]'; for an environment of your own, import what "
            "registers it (on the command line: --import MODULE)."
        ) from error
    except (TypeError, ValueError, AttributeError, AssertionError, gym.error.Error) as error:
        if isinstance(error, SpaceError):
            raise
        raise SpaceError(
            f"{spec.id} as installed here cannot be made with {spec.kwargs | kwargs}: "
            f"{error}. Install the versions that the description was made with, or build the "
            "environment yourself."
        ) from error


def registered(spec: EnvSpec) -> EnvSpec:
    """The description with the code that is registered here under its id.

    Raises:
        ImportError: The package that would register it is missing.
        UnregisteredEnv: Gymnasium's, with the nearest id.
        SpaceError: It asks for a wrapper that is not known here.
    """
    entry = spec.entry_point if isinstance(spec.entry_point, str) else ""
    if spec.id not in gym.registry:
        for name in _REGISTRARS:
            if entry.startswith(name):
                importlib.import_module(name)
    known = gym.spec(spec.id)
    for wrapper in spec.additional_wrappers:
        if wrapper not in known.additional_wrappers:
            _check_wrapper(wrapper, spec.id)
    # Shimmy's environments make others by a name of the kind module:id, whose module they import.
    for name, value in spec.kwargs.items():
        if name in ("id", "env_id") and ":" in str(value):
            raise SpaceError(
                f"{spec.id} would import {value!r}, and a file does not decide what is imported. "
                "Build the environment yourself."
            )
    return replace(spec, entry_point=known.entry_point, vector_entry_point=known.vector_entry_point)


def _check_wrapper(wrapper: WrapperSpec, where: str) -> None:
    """Raise a `SpaceError` unless it is a wrapper of a known package, or one already imported."""
    module, _, name = str(wrapper.entry_point).partition(":")
    if module.startswith(_WRAPPERS):
        importlib.import_module(module)
    found = getattr(sys.modules.get(module), name, None)
    if not (inspect.isclass(found) and issubclass(found, gym.Wrapper)):
        raise SpaceError(
            f"{where} asks for the wrapper {wrapper.entry_point!r}, which is not known here, and a "
            "file does not decide what is imported. If it is yours, import its module before."
        )
