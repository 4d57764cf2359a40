"""Which sub-environment begins a new episode, and which ignores the next action."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from gem_policy.errors import SpaceError

Flags = NDArray[np.bool_]
Step = tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]

if TYPE_CHECKING:
    Vectors = VectorEnv[Any, Any, Any]
    _Wrapper = VectorWrapper[Any, Any, Any, Any, Any]
else:  # Gymnasium before 1.4 has other type parameters
    Vectors, _Wrapper = VectorEnv, VectorWrapper


class EpisodeWrapper(_Wrapper):
    """A vector wrapper that knows where episodes begin.

    Attributes:
        autoreset: How the environment resets its sub-environments.
        ignoring: Shape (envs,): which sub-environments will ignore the next action, because they
            reset instead; all of them before the first reset.

    Raises:
        SpaceError: The environment names no autoreset mode.
    """

    def __init__(self, env: Vectors) -> None:
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise SpaceError(
                f"{env} must say how it resets: metadata['autoreset_mode'] should be a "
                f"gymnasium.vector.AutoresetMode, got {mode!r}."
            )
        self.autoreset = mode
        self.ignoring: Flags = np.ones(env.num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all sub-environments, or those in ``options["reset_mask"]``."""
        # Read first: the environment takes it out of the options.
        mask = (options or {}).get("reset_mask")
        where = np.ones(self.num_envs, np.bool_) if mask is None else np.array(mask, np.bool_)
        observations, infos = self.env.reset(seed=seed, options=options)
        self.ignoring = self.ignoring & ~where
        return self._began(observations, infos, where), infos

    def _began(self, observations: Any, infos: dict[str, Any], where: Flags) -> Any:
        """What a reset returns; ``where`` are the new episodes."""
        return observations

    def _over(self, terminations: NDArray[Any], truncations: NDArray[Any]) -> Flags:
        """Note after a step what comes next; where an episode has just begun.

        Must be called exactly once a step.
        """
        done = np.logical_or(terminations, truncations)
        begun = self.ignoring if self.autoreset == AutoresetMode.NEXT_STEP else done
        if self.autoreset == AutoresetMode.NEXT_STEP:
            self.ignoring = done
        elif self.autoreset == AutoresetMode.DISABLED:
            begun = np.zeros_like(done)
        return begun
