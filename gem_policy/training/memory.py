"""Whether data fit into memory, asked before anything is read."""

from __future__ import annotations

import contextlib
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
# Several seeds at once hold more: what they share besides what is prepared of one of them, and the
# numbers, advantages and weights of each. By hand, with four critics: 2, 4 and 8 seeds took 657,
# 856 and 1056 bytes a step where the tensors take 84, 4 and 8 took 765 and 926 where they take 68.
SHARED_STEP, SEED_STEP = 200, 62
GB = 1e9

OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# By the controller's name, that of version 2 is empty: limit, use, and what of it can be freed.
LIMITS = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def step_bytes(observation_size: int, action_size: int) -> int:
    """Bytes of one step in memory: float32 but for two flags and the episode's number."""
    return 4 * (observation_size + action_size + 1) + 2 + 8


def training_bytes(step: float, seeds: int = 1) -> float:
    """Bytes that a run takes for a step whose tensors take ``step`` bytes, besides these."""
    one = TRAINING * step + TRAINING_STEP
    return one if seeds == 1 else one + SHARED_STEP + seeds * SEED_STEP


def available_bytes() -> int | None:
    """Memory that this process can still take without swapping; None where nobody says."""
    told = [room for room in (_system_bytes(), _container_bytes()) if room is not None]
    return min(told, default=None)


def _container_bytes() -> int | None:
    """What the limits of the control groups leave that this process is in, as a container's do."""
    rooms = []
    with contextlib.suppress(OSError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controller, path = (line.split(":", 2) + ["", ""])[:3]
            if controller in LIMITS:
                group = Path(path.lstrip("/"))
                for part in (group, *group.parents):
                    rooms.append(_group_bytes(GROUPS / controller / part, *LIMITS[controller]))
    return min((room for room in rooms if room is not None), default=None)


def _group_bytes(group: Path, limit: str, used: str, freed: str) -> int | None:
    """What one control group's limit leaves, cached files counted as free; None without one."""
    try:
        room = int((group / limit).read_text()) - int((group / used).read_text())
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            room += int(value) if name == freed else 0
    except (OSError, ValueError):  # no such file; "max" is no number
        return None
    return max(room, 0)


def _system_bytes() -> int | None:
    """What the whole machine has left."""
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
