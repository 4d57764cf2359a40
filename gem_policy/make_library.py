"""A program that makes the library of a policy's decisions; `gem_policy.ahead_of_time` runs it.

    python -m gem_policy.make_library CHECKPOINT LIBRARY THREADS SIZE [SIZE ...]

The sizes are the shape of the observations. By torch's AOTInductor.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

import torch
from torch import Tensor, nn

from gem_policy.ahead_of_time import tensors_of
from gem_policy.checkpoint import load
from gem_policy.policy import GEMPolicy


class Decisions(nn.Module):
    """A policy's deterministic decisions as torch exports them: a module, of tensors alone."""

    def __init__(self, policy: GEMPolicy) -> None:
        super().__init__()
        self.networks = nn.ModuleList((policy.actor, policy.behavior, policy.critics))
        self._decide = policy.traceable

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        """What `decision_of` makes a decision of."""
        return tensors_of(self._decide(rows))


def exported(policy: GEMPolicy, shape: torch.Size) -> torch.export.ExportedProgram:
    """The operations of its decisions for observations of one shape, with the weights."""
    decisions, rows = Decisions(policy), torch.zeros(shape, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        decisions(rows)  # draws and the like are kept from here on, and not traced
        return torch.export.export(decisions, (rows,), strict=False)


def machine_code(program: torch.export.ExportedProgram) -> bytes:
    """A shared library that runs the program, with the weights in it."""
    import torch._inductor

    with tempfile.TemporaryDirectory() as scratch:
        package = str(Path(scratch, "decisions.pt2"))
        with torch.no_grad():
            torch._inductor.aoti_compile_and_package(program, package_path=package)
        with ZipFile(package) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".so"))
            return archive.read(name)


def main(checkpoint: str, library: str, threads: str, *shape: str) -> None:
    """Make it; what goes wrong is told in one line, the last one of standard error."""
    torch.set_num_threads(int(threads))
    policy = GEMPolicy(load(Path(checkpoint)), torch.device("cpu"))
    try:
        code = machine_code(exported(policy, torch.Size(map(int, shape))))
        Path(library).write_bytes(code)
    except (RuntimeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        causes = [line for line in lines[1:] if "error" in line.lower()]  # of a compiler's output
        sys.exit("\n" + ": ".join([*lines[:1], *causes[:1]]))


if __name__ == "__main__":
    main(*sys.argv[1:])
