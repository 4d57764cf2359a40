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


def read_spec(document: object) -> EnvSpec:
    """The description of an environment, from JSON text or the object in it.

    Without wrappers that hold a policy: see `without_policies`.

    Raises:
        SpaceError: It is none.
    """
    try:
        told: Any = json.loads(document) if isinstance(document, str) else document
        spec = EnvSpec.from_json(json.dumps(without_policies(told)))
    except (ValueError, TypeError, KeyError, AttributeError, gym.error.Error) as error:
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
    in which that policy has a say: a shield would earn the returns of what is to be scored.
    """
    found = document.get("additional_wrappers")
    if not found:
        return document
    kept = [
        wrapper
        for wrapper in found
        if not str(wrapper["entry_point"]).startswith("gem_policy.wrappers")
        or "policy" not in (wrapper["kwargs"] or {})
    ]
    return {**document, "additional_wrappers": kept}


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
            "registers it."
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
        _check_wrapper(wrapper, spec.id)
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
