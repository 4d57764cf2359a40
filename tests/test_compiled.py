"""Compiled decisions: the same as ordinary ones, in one piece, and refused in words.

Those of `torch.compile`, for GPUs and for older torch; for others see test_ahead_of_time.py.
"""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import decide_otherwise, tiny_policy

from gem_policy.compiled import Compiled
from gem_policy.errors import ConfigError

# Of torch itself, when its compiler is imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
PROGRAM = Path(__file__).with_name("compiled_policies.py")


def played(*arguments: str, **environment: str) -> str:
    command = [sys.executable, str(PROGRAM), *arguments]
    env = {**os.environ, **environment}
    done = subprocess.run(command, text=True, capture_output=True, timeout=900, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_decision_is_traced_in_one_piece_and_is_the_ordinary_one() -> None:
    assert "ordinary" in played("cpu", "eager")


@pytest.mark.slow
def test_compiled_for_the_cpu_it_is_the_ordinary_one(tmp_path: Path) -> None:
    assert "ordinary" in played("cpu", GEM_POLICY_CACHE=str(tmp_path))
    libraries = sorted(tmp_path.iterdir())
    assert "ordinary" in played("cpu", GEM_POLICY_CACHE=str(tmp_path))
    assert sorted(tmp_path.iterdir()) == libraries, "the second time all are found"


@pytest.mark.cuda
def test_compiled_for_a_gpu_it_is_the_ordinary_one() -> None:
    assert "ordinary" in played("cuda")


def test_nothing_is_compiled_unless_asked_for() -> None:
    policy = tiny_policy()
    assert policy.compiled is False
    policy.compiled = True
    assert policy.compiled and not policy.cuda_graph
    policy.compiled = False
    assert policy._compiled is None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often each function that torch was asked to compile is called; all are left as is."""
    monkeypatch.setattr("gem_policy.policy.is_available", lambda: False)
    counts: list[int] = []

    def leave(work: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        counts.append(0)
        number = len(counts) - 1

        def counted(*arguments: Any) -> Any:
            counts[number] += 1
            return work(*arguments)

        return counted

    monkeypatch.setattr(torch, "compile", leave)
    return counts


def test_what_is_compiled_is_what_decides(calls: list[int]) -> None:
    policy, rows = tiny_policy(), torch.randn(2, 3)
    policy.decide(rows)
    policy.compiled = True
    policy.predict(rows.numpy(), deterministic=True)
    assert calls == [2], "row by row"
    policy.decide(rows)
    assert calls == [3]
    decide_otherwise(policy, rows)
    assert calls == [3], "draws, other counts and the mode alone are not"


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))]
)
def test_a_copy_compiles_its_own_decisions(again: Any, calls: list[int]) -> None:
    policy = tiny_policy()
    assert again(policy).compiled is False
    policy.compiled = True
    other = again(policy)
    assert other.compiled and len(calls) == 2
    other.selection = other.selection.replace(candidates=5)
    rows = torch.randn(2, 3)
    assert other.decide(rows).scores.shape == (2, 5)
    assert policy.decide(rows).scores.shape == (2, 12)
    policy.compiled = True
    assert calls == [1, 1], "it was compiled already"


def test_a_python_that_torch_does_not_compile_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("torch.compile is not supported on this Python")

    monkeypatch.setattr("gem_policy.policy.is_available", lambda: False)
    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(ConfigError, match="not supported on this Python.*leave out `compiled`"):
        tiny_policy().compiled = True


def test_what_torch_cannot_compile_is_told() -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("there is no compiler here")

    decide = Compiled(lambda rows, _: rows.sin(), backend=broken)
    with pytest.raises(ConfigError, match="no compiler here.*leave out `compiled`"):
        decide(torch.ones(3), None)
