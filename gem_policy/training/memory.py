"""Whether data fit into memory, asked before anything is read."""

from __future__ import annotations

import os
from pathlib import Path

from gem_policy.errors import DatasetError

# Peak of `load` in bytes per byte of its tensors: 1.85 measured (benchmarks/results/loading.json).
LOADING = 2.0
# What a run holds at its peak besides the dataset: its split into two parts, their normalized
# copies, and the returns, advantages and weights of every transition. By hand, with four critics,
# 309 bytes a step were measured where the tensors take 54 (observations of 8 numbers, actions of
# 2), and 449 where they take 106 (17 and 6); 4 have come since, for what ends an episode.
TRAINING, TRAINING_STEP = 3.0, 160
GB = 1e9


def step_bytes(observation_size: int, action_size: int) -> int:
    """Bytes of one step in memory: float32 but for two flags and the episode's number."""
    return 4 * (observation_size + action_size + 1) + 2 + 8


def training_bytes(step: float) -> float:
    """Bytes that a run takes for a step whose tensors take ``step`` bytes, besides these."""
    return TRAINING * step + TRAINING_STEP


def available_bytes() -> int | None:
    """Memory that a program can still take without swapping; None where nobody says."""
    try:
        import psutil  # not a dependency: it knows every system

        return int(psutil.virtual_memory().available)
    except ImportError:
        pass
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def check_room(dataset_id: str, steps: int, bytes_per_step: float, what: str) -> None:
    """Refuse what would not fit.

    Args:
        dataset_id: For the message.
        steps: Steps to hold.
        bytes_per_step: Memory for each of them, at the peak.
        what: What is about to be done, for the message.

    Raises:
        DatasetError: More is needed than is available; the message says how many steps would fit.
    """
    available = available_bytes()
    needed = steps * bytes_per_step
    if available is not None and needed > available:
        raise DatasetError(
            f"{what} `{dataset_id}` needs about {needed / GB:.3g} GB for {steps} steps, and "
            f"{available / GB:.3g} GB of memory are available. Read fewer of its episodes: "
            f"max_steps={int(available / bytes_per_step)} at most (`--max-steps`), or "
            "`episode_filter`. Or free memory first."
        )
