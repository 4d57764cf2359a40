"""The device that somebody asks for, or a word on why it cannot be had."""

from __future__ import annotations

import torch

from gem_policy.errors import ConfigError


def choose_device(device: str | torch.device) -> torch.device:
    """``"auto"`` is CUDA where there is one, else the CPU; anything else is taken at its word.

    Raises:
        ConfigError: CUDA was asked for and is absent, or there is no such device.
    """
    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
        torch.Generator(device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]  # torch's goes on for a screen
        raise ConfigError(
            f"Device {str(device)!r} cannot be used here ({reason}). Use device='auto' or 'cpu'; "
            "for CUDA, install a torch build with CUDA and check torch.cuda.is_available()."
        ) from error
    return chosen
