"""Making Gymnasium-Robotics environments: registered, quiet, and leaving no files behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from gem_policy.errors import DependencyError


def make_robotics(source: str | EnvSpec, **kwargs: Any) -> gym.Env[Any, Any]:
    """`gymnasium.make` without the passive checker, for environments of Gymnasium-Robotics.

    Raises:
        DependencyError: if Gymnasium-Robotics is not installed.
    """
    register_robotics()
    env = gym.make(source, disable_env_checker=True, **kwargs)
    # Mazes write their model to a file that they read once and never remove.
    scratch = getattr(env.unwrapped, "tmp_xml_file_path", None)
    if scratch is not None:
        Path(scratch).unlink(missing_ok=True)
    return env


def register_robotics() -> None:
    """Let `gymnasium.make` know the environments of Gymnasium-Robotics.

    Raises:
        DependencyError: if it is not installed.
    """
    try:
        import gymnasium_robotics
    except ImportError as error:
        raise DependencyError(
            "This needs Gymnasium-Robotics and MuJoCo: pip install 'gem-policy[envs]'."
        ) from error
    gym.register_envs(gymnasium_robotics)
