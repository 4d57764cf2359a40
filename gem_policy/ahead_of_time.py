"""Decisions on a CPU as libraries of their own, which need none of torch's Python to be called.

What `torch.compile` makes is found by Python that takes as long as a third of a decision does
(DESIGN). A library is made by another process (`gem_policy.make_library`), because tracing changes
what is the whole process's, and is kept for later ones.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy.candidates import CandidateSet
from gem_policy.checkpoint import Checkpoint, to_bytes, write_atomically
from gem_policy.compiled import TORCH
from gem_policy.errors import CheckpointError, ConfigError
from gem_policy.selection import Decision

KEPT = 8  # libraries of a policy, as many as torch keeps of what it compiles
Settings = TypeVar("Settings", bound=Hashable)
Run = Callable[[list[Tensor]], Sequence[Tensor]]


def is_available() -> bool:
    """Whether such libraries are made: by torch 2.6 and later, on Windows by none (not tried)."""
    return TORCH >= (2, 6) and sys.platform != "win32"


class AheadOfTime(Generic[Settings]):
    """A deterministic decision, by a library for every shape and settings that it meets.

    Up to `KEPT` of them; what it meets beyond runs as it would without this. From any thread.

    Args:
        decide: The decision, from observations and settings.
        library: What does the same for observations of one shape (float32, in order).
    """

    def __init__(
        self,
        decide: Callable[[Tensor, Settings], Decision],
        library: Callable[[torch.Size, Settings], Run],
    ) -> None:
        self._decide, self._library = decide, library
        self._made: dict[Hashable, Run] = {}
        self._making = threading.Lock()
        self._refused = ""

    def __call__(self, observations: Float[Tensor, "*batch obs"], settings: Settings) -> Decision:
        """The decision, to rounding.

        Raises:
            ConfigError: No library can be made here; from the second time on without trying.
        """
        # The code takes what it was made for as given: type, order in memory, number of threads.
        rows = observations.to("cpu", torch.float32).contiguous()
        key = (rows.shape, torch.get_num_threads(), settings)
        run = self._made.get(key)
        if run is None and rows.numel() > 0:
            run = self._find(key, rows.shape, settings)
        return self._decide(observations, settings) if run is None else decision_of(run([rows]))

    def _find(self, key: Hashable, shape: torch.Size, settings: Settings) -> Run | None:
        """The library for a key; None where there is no room for it."""
        with self._making:
            if key not in self._made and len(self._made) < KEPT:
                if self._refused:
                    raise ConfigError(self._refused)
                try:
                    self._made[key] = self._library(shape, settings)
                except ConfigError as error:
                    self._refused = str(error)
                    raise
            return self._made.get(key)


def library_of(checkpoint: Checkpoint, shape: torch.Size) -> Run:
    """The library of a policy's decisions for observations of one shape: found, or made.

    Its numbers are those of the checkpoint, and its own.

    Raises:
        ConfigError: It cannot be made, kept or loaded.
    """
    content = to_bytes(checkpoint)
    try:
        folder = libraries()
        folder.mkdir(parents=True, exist_ok=True)
        name = digest(content, shape)
        path = kept(folder, name)
        if path is None:
            library = made_elsewhere(content, shape, folder)
            path = folder / f"{name}-{_hash(library)}.so"
            write_atomically(path, library)
        run: Run = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1).run
    except (OSError, RuntimeError, CheckpointError) as error:
        raise _refusal(str(error)) from error
    return run


def libraries() -> Path:
    """Where libraries are kept: GEM_POLICY_CACHE, or a folder where caches are for this user."""
    given = os.environ.get("GEM_POLICY_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(caches, "gem_policy")


def kept(folder: Path, name: str) -> Path | None:
    """The library of that name, if it is there and whole."""
    for path in folder.glob(f"{name}-*.so"):
        if path.stem == f"{name}-{_hash(path.read_bytes())}":
            return path
    return None


def digest(content: bytes, shape: torch.Size) -> str:
    """What tells a library from all others: the policy, this package, torch and the processor."""
    told = (tuple(shape), torch.get_num_threads(), torch.__version__, sys.platform, _processor())
    return _hash(content + _sources() + repr(told).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


@functools.cache
def _sources() -> bytes:
    """The package's own code, of which a decision's is a part."""
    return b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))


@functools.cache
def _processor() -> str:
    """What this processor can do: code is made for no other."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith(("flags", "Features"))]
    return "".join(told[:1]) or torch.backends.cpu.get_cpu_capability()


def made_elsewhere(content: bytes, shape: torch.Size, folder: Path) -> bytes:
    """The library that another process makes of a checkpoint; what that needs is gone afterwards.

    Raises:
        ConfigError: It could not make one.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        given, made = Path(scratch, "policy.safetensors"), Path(scratch, "library.so")
        given.write_bytes(content)
        told = map(str, (given, made, torch.get_num_threads(), *shape))
        done = subprocess.run(
            [sys.executable, "-m", "gem_policy.make_library", *told],
            capture_output=True,
            text=True,
            cwd=scratch,  # Python imports from where it runs
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
                "TORCHINDUCTOR_CACHE_DIR": scratch,
                "CUDA_VISIBLE_DEVICES": "",
            },
        )
        if done.returncode != 0 or not made.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise _refusal(lines[-1].strip() if lines else f"exit status {done.returncode}")
        return made.read_bytes()


def _refusal(reason: str) -> ConfigError:
    return ConfigError(
        f"No library of the decisions can be made ({reason}). That needs a C++ compiler, and a "
        f"folder to write in, {libraries()} unless GEM_POLICY_CACHE names another. See to that, "
        "or leave out `compiled`."
    )


def tensors_of(decision: Decision) -> tuple[Tensor, ...]:
    """A decision as the tensors that it is made of."""
    found = decision.candidates
    return (
        decision.action,
        decision.index,
        decision.scores,
        decision.supported,
        found.actions,
        found.component,
        found.q,
        found.log_behavior,
    )


def decision_of(tensors: Sequence[Tensor]) -> Decision:
    """What `tensors_of` was given."""
    action, index, scores, supported, *found = tensors
    return Decision(action, index, scores, supported, CandidateSet(*found))
