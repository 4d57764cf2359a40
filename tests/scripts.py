"""The scripts of `benchmarks`, which is no package."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
from layout import ROOT

BENCHMARKS = ROOT / "benchmarks"


def script(path: str) -> ModuleType:
    """The script of this path in `benchmarks`, as a module; it finds its neighbors.

    Where there are no benchmarks, as in a source distribution, the module that asks is skipped.
    """
    if not BENCHMARKS.is_dir():
        pytest.skip("benchmarks are in the repository only", allow_module_level=True)
    name = "benchmark_" + path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(BENCHMARKS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module
