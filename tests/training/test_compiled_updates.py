"""Compiled updates: the ordinary ones, in one piece; whole runs, stopped and resumed too."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import SHORT, random_dataset, run

from gem_policy import cli
from gem_policy.errors import TrainingError
from gem_policy.training.trainer import PHASES

PROGRAM = Path(__file__).parent.with_name("compiled_trainings.py")


def done(*arguments: str | Path) -> str:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    found = subprocess.run(command, text=True, capture_output=True, timeout=900)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def test_updates_are_traced_in_one_piece_and_are_the_ordinary_ones(tmp_path: Path) -> None:
    assert "ordinary" in done(tmp_path, "cpu", "eager")


@pytest.mark.slow
def test_a_compiled_run_is_the_ordinary_one_and_resumes_to_the_bit(tmp_path: Path) -> None:
    assert "ordinary" in done(tmp_path, "cpu")


@pytest.mark.cuda
def test_a_run_compiled_for_a_gpu_is_the_ordinary_one(tmp_path: Path) -> None:
    assert "ordinary" in done(tmp_path, "cuda")


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")  # two updates a phase
@pytest.mark.parametrize(("options", "phases"), [([], 0), (["--compiled"], 4)])
@pytest.mark.parametrize("seeds", [[], ["--seeds", "2"]])
def test_the_command_compiles_each_phase_once_if_asked_to(
    root: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], phases: int, seeds: list[str]
) -> None:
    calls: list[int] = []

    def leave(work: Any, **_: Any) -> Any:
        calls.append(0)
        number = len(calls) - 1

        def counted(batch: Any) -> Any:
            calls[number] += 1
            return work(batch)

        return counted

    random_dataset(root, [9] * 5)
    short = [f"--set={name}_updates=2" for name in PHASES] + ["--set=cautious=false"]
    arguments = ["gem-policy", "train", "test/random-v0", "--out", str(root / "run"), *short]
    monkeypatch.setattr(sys, "argv", [*arguments, *options, *seeds])
    monkeypatch.setattr(torch, "compile", leave)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert calls == [2] * phases, "every update of each"


def test_dropout_cannot_be_compiled(tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path / "data", [9] * 5)
    with pytest.raises(TrainingError, match="dropout=0.1 draws new masks and cannot be compiled"):
        run(dataset, tmp_path / "run", replace(SHORT, dropout=0.1), compiled=True)
