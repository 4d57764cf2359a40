"""The scripts of `benchmarks`, which is no package."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from layout import ROOT

BENCHMARKS = ROOT / "benchmarks"


def script(path: str) -> ModuleType:
    """The script of this path in `benchmarks`, as a module; it finds its neighbors."""
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
