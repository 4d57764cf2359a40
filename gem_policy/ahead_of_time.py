"""Decisions on a CPU as machine code of their own, which needs none of torch's Python to be called.

What `torch.compile` makes is found by Python that takes as long as a third of a decision does
(DESIGN). AOTInductor makes the same code as a library with the weights in it.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import threading
import warnings
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gem_policy.candidates import CandidateSet
from gem_policy.compiled import TORCH, refusal
from gem_policy.selection import Decision

KEPT = 8  # libraries of a policy, as many as torch keeps of what it compiles
Settings = TypeVar("Settings", bound=Hashable)
Run = Callable[[list[Tensor]], Sequence[Tensor]]


def is_available() -> bool:
    """Whether this torch makes such libraries as this does: 2.6 and later."""
    return TORCH >= (2, 6)


class AheadOfTime(Generic[Settings]):
    """A deterministic decision, made machine code for every shape and settings that it meets.

    Up to `KEPT` of them; what it meets beyond runs as it would without this. Code that was made
    once is found again by later processes, in the folder of torch's own (TORCHINDUCTOR_CACHE_DIR).
    From any thread.

    Args:
        decide: What to compile: from observations and settings.
        networks: With which it does. Their weights are those of when a pair is first met.
        build: Makes code of an exported program; None for `machine_code`.
    """

    def __init__(
        self,
        decide: Callable[[Tensor, Settings], Decision],
        networks: Sequence[nn.Module],
        build: Callable[[torch.export.ExportedProgram], Run] | None = None,
    ) -> None:
        self._decide = decide
        self._networks = networks
        self._build = build
        self._made: dict[Hashable, Run] = {}
        self._making = threading.Lock()

    def __call__(self, observations: Float[Tensor, "*batch obs"], settings: Settings) -> Decision:
        """The decision, to rounding.

        Raises:
            ConfigError: Torch cannot compile here.
        """
        # The code takes what it was made for as given: type, order in memory, number of threads.
        rows = observations.to("cpu", torch.float32).contiguous()
        key = (rows.shape, torch.get_num_threads(), settings)
        run = self._made.get(key)
        if run is None:
            with self._making:
                run = self._made.get(key)
                if run is None:
                    if len(self._made) == KEPT or rows.numel() == 0:
                        return self._decide(observations, settings)
                    run = self._made[key] = self._make(rows.shape, settings)
        return decision_of(run([rows]))

    def _make(self, shape: torch.Size, settings: Settings) -> Run:
        try:
            # Tensors of inference mode are nothing for tracing and compiler.
            with torch.inference_mode(False), torch.no_grad():
                program = exported(self._decide, self._networks, shape, settings)
                return (self._build or machine_code)(program)
        except (RuntimeError, OSError) as error:
            raise refusal(error) from error


class _Traced(nn.Module):
    """A decision in the form that torch exports: a module, from tensor to tensors."""

    def __init__(self, decide: Callable[[Tensor], Decision], networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self._decide, self._networks = decide, nn.ModuleList(networks)

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tensors_of(self._decide(rows))


def exported(
    decide: Callable[[Tensor, Settings], Decision],
    networks: Sequence[nn.Module],
    shape: torch.Size,
    settings: Settings,
) -> torch.export.ExportedProgram:
    """The decision's operations for observations of one shape, and its weights."""
    rows = torch.zeros(shape)
    # Draws and the like are made by the first call, and found by the one that is traced.
    decide(rows, settings)
    module = _Traced(lambda given: decide(given, settings), networks)
    return torch.export.export(module, (rows,), strict=False)


def machine_code(program: torch.export.ExportedProgram) -> Run:
    """A library of the program, or the one that was made of the same program before."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir()) / "gem_policy"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest(program)}.pt2"
    if path.exists():
        try:
            return _load(path)
        except RuntimeError:  # damaged: made again
            path.unlink(missing_ok=True)
    # Written beside its place: another process must find all of it or nothing.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        package = Path(scratch, path.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, of what is in torch
            torch._inductor.aoti_compile_and_package(program, package_path=str(package))
        package.replace(path)
    return _load(path)


def digest(program: torch.export.ExportedProgram) -> str:
    """What tells this program, on this machine, from all others: weights, torch and threads."""
    written = io.BytesIO()
    torch.export.save(program, written)
    machine = (
        torch.__version__,
        torch.backends.cpu.get_cpu_capability(),
        str(torch.get_num_threads()),
    )
    return hashlib.sha256(written.getvalue() + "\n".join(machine).encode()).hexdigest()


def _load(path: Path) -> Run:
    run: Run = torch._inductor.aoti_load_package(str(path)).loader.run
    return run


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
