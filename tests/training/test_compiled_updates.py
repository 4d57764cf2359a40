"""Compiled updates: the ordinary ones, in one piece; whole runs, stopped and resumed too."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import SHORT, random_dataset, run

from gem_policy.errors import TrainingError

PROGRAM = Path(__file__).parent.with_name("compiled_trainings.py")


def done(*arguments: str | Path) -> str:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    found = subprocess.run(command, text=True, capture_output=True, timeout=900)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def test_updates_are_traced_in_one_piece_and_are_the_ordinary_ones(tmp_path: Path) -> None:
    assert "ordinary" in done(tmp_path, "eager")


@pytest.mark.slow
def test_a_compiled_run_is_the_ordinary_one_and_resumes_to_the_bit(tmp_path: Path) -> None:
    assert "ordinary" in done(tmp_path)


def test_dropout_cannot_be_compiled(tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path / "data", [9] * 5)
    with pytest.raises(TrainingError, match="dropout=0.1 draws new masks and cannot be compiled"):
        run(dataset, tmp_path / "run", replace(SHORT, dropout=0.1), compiled=True)
