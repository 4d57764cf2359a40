"""Stable-Baselines3's ``predict``: conversions outside, tensors inside.

Whatever acts, a `GEMPolicy` or a baseline to compare it with, meets the same contract through
this class and so can stand in SB3 evaluation code.
"""

from __future__ import annotations

import abc
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from gem_policy.config import require_count
from gem_policy.errors import SpaceError
from gem_policy.spaces import ObservationReader

State = tuple[NDArray[Any], ...] | None
MAX_SEED = 2**64 - 1  # torch's


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Leave a caller's `torch.autocast`: rounded products would make another candidate the best."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def refuse_overflow(observations: NDArray[np.float32], actions: NDArray[np.float32]) -> None:
    """Raise a `SpaceError` where networks made no action of an observation that is finite."""
    if not np.isfinite(actions).all():
        rows = np.nonzero(~np.isfinite(actions).all(-1))[0].tolist()
        raise SpaceError(
            f"The observations in rows {rows[:10]} overflow the networks: their largest number is "
            f"{np.abs(observations[rows]).max():g}. A policy cannot act on them; look at what the "
            "environment or sensor returned."
        )


class Predictor(abc.ABC):
    """The SB3 surface of something that acts: ``predict``, spaces, device, seeding.

    Args:
        observation_space: What ``predict`` takes.
        action_space: What it returns.
        device: Where the tensors live.
        seed: Seed of the generator behind ``deterministic=False``.

    Attributes:
        row_by_row: Whether deterministic batches on the CPU are decided one observation at a time,
            so that an answer does not depend, to the bit, on its batch. False decides them at once:
            several times faster, and the same up to rounding.
    """

    row_by_row: bool = True

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.device = device
        self._reader = ObservationReader(observation_space)
        self._generator = torch.Generator(device=device)
        self.set_random_seed(seed)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, also those that a process takes along when it is started.

        The generator as bytes: torch sends its state through a file that is gone by then.
        """
        drawn = self._generator.get_state().numpy().tobytes()
        return {**vars(self), "_generator": drawn}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a generator of its own, which goes on where the other's stood."""
        generator = torch.Generator(device=state["device"])
        generator.set_state(torch.frombuffer(bytearray(state["_generator"]), dtype=torch.uint8))
        vars(self).update({**state, "_generator": generator})

    @abc.abstractmethod
    def act(
        self, rows: Float[Tensor, "batch obs"], generator: torch.Generator | None
    ) -> Float[Tensor, "batch action"]:
        """Actions in environment units; deterministic where there is no generator."""

    def predict(
        self,
        observation: Any,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], State]:
        """Actions for one observation or a batch: SB3's contract.

        Args:
            observation: What the environment or vector environment returned, in its own units:
                an array, list or CPU tensor, or a mapping of them; with or without a batch axis.
            state: Ignored and handed back: the policy has no memory.
            episode_start: Ignored, for the same reason.
            deterministic: True: the answer is a function of the observation alone; on the CPU
                it does not depend, to the bit, on the batch that the observation came in.
                False: fresh random candidates, from the policy's own generator.

        Returns:
            Actions of shape ``action_space.shape``, or ``(batch, *action_space.shape)``, with the
            action space's dtype, inside its bounds; and ``state``.

        Raises:
            SpaceError: The observation is not one of the observation space, not finite, or so
                large that the networks overflow.
        """
        array, batched = self._reader.read(observation)
        with torch.inference_mode(), full_precision(self.device):
            out = self._answer(torch.from_numpy(array), deterministic).numpy()
        refuse_overflow(array, out)
        if self.action_space.dtype != out.dtype:
            # Bounds that float32 rounds outwards: the action must be inside those of the space.
            box = self.action_space
            out = np.clip(out.astype(box.dtype), box.low, box.high)
        return (out if batched else out[0]), state

    def _answer(
        self, rows: Float[Tensor, "batch obs"], deterministic: bool
    ) -> Float[Tensor, "batch action"]:
        """`act` for observations on the CPU, whose answer comes there too."""
        if self.device.type != "cpu":
            rows = rows.to(self.device)
        if not deterministic:
            return self.act(rows, self._generator).cpu()
        if self.row_by_row and self.device.type == "cpu" and rows.shape[0] > 1:
            # Matrix kernels round differently for other numbers of rows, so that in a batch
            # a near tie could fall the other way. One row at a time it cannot.
            return torch.cat([self._best(row) for row in torch.split(rows, 1)])
        return self._best(rows).cpu()

    def _best(self, rows: Float[Tensor, "batch obs"]) -> Float[Tensor, "batch action"]:
        """The deterministic action, on the policy's device."""
        return self.act(rows, None)

    def __call__(
        self,
        observation: Any,
        state: State = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], State]:
        """`predict` as a plain callable, which is what imitation's rollouts accept."""
        return self.predict(observation, state, episode_start, deterministic)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the generator behind ``deterministic=False``; None seeds from the system.

        Raises:
            ConfigError: It is no integer from 0 to 2**64 - 1.
        """
        if seed is None:
            self._generator.seed()
        else:
            require_count("seed", seed, 0, MAX_SEED)
            self._generator.manual_seed(int(seed))

    def get_vec_normalize_env(self) -> None:
        """SB3's callbacks ask for it. None: normalization is inside the policy."""
        return None
