"""Decisions as libraries: when they are asked for, what they are known by, kept and refused.

What is in them is tested in test_make_library.py; real ones, by a program, in test_compiled.py
(slow).
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import GOAL, decide_otherwise, tiny_checkpoint, tiny_policy
from torch import Tensor

from gem_policy import ahead_of_time
from gem_policy.ahead_of_time import (
    KEPT,
    decision_of,
    digest,
    is_available,
    kept,
    libraries,
    library_of,
    tensors_of,
)
from gem_policy.checkpoint import Checkpoint, to_bytes
from gem_policy.errors import ConfigError
from gem_policy.policy import GEMPolicy

needed = pytest.mark.skipif(not is_available(), reason="torch before 2.6 makes no such libraries")
ROW = torch.Size([1, 3])


def test_a_decision_is_the_tensors_that_it_is_made_of() -> None:
    decision = tiny_policy().decide(torch.randn(2, 3))
    again = decision_of(tensors_of(decision))
    for found, expected in zip(tensors_of(again), tensors_of(decision), strict=True):
        assert found is expected
    assert again == decision


class Libraries:
    """In place of libraries, policies of the checkpoints; counts what each of them is asked."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(
        self, checkpoint: Checkpoint, shape: torch.Size
    ) -> Callable[[list[Tensor]], Sequence[Tensor]]:
        policy, number = GEMPolicy(checkpoint, torch.device("cpu")), len(self.calls)
        self.calls.append(0)
        time.sleep(0.05)  # long enough for another thread to ask for the same

        def run(given: list[Tensor]) -> Sequence[Tensor]:
            (rows,) = given
            assert rows.shape == shape and rows.dtype == torch.float32 and rows.is_contiguous()
            self.calls[number] += 1
            return tensors_of(policy.decide(rows))

        return run


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Libraries:
    libraries = Libraries()
    monkeypatch.setattr("gem_policy.policy.library_of", libraries)
    monkeypatch.setattr("gem_policy.policy.is_available", lambda: True)
    return libraries


def compiled_policy() -> GEMPolicy:
    policy = tiny_policy()
    policy.compiled = True
    return policy


def test_one_is_made_for_every_shape_settings_and_number_of_threads(
    made: Libraries, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, rows = compiled_policy(), torch.randn(2, 3)
    before = policy.selection
    policy.decide(rows)
    policy.decide(rows + 1)
    assert made.calls == [2]
    policy.decide(rows[:1])
    policy.selection = before.replace(candidates=5)
    assert policy.decide(rows).scores.shape == (2, 5)
    policy.selection = before.replace()  # equal, not the same
    policy.decide(rows)
    assert made.calls == [3, 1, 1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    policy.decide(rows)
    assert made.calls == [3, 1, 1, 1]


def test_a_library_is_of_this_policys_numbers_and_settings(made: Libraries) -> None:
    policy, rows = compiled_policy(), torch.randn(4, 3)
    policy.critics.weights[0].mul_(3.0)
    policy.selection = policy.selection.replace(candidates=9, kappa=0.5)
    found = policy.decide(rows)
    policy.compiled = False
    for one, other in zip(tensors_of(found), tensors_of(policy.decide(rows)), strict=True):
        assert torch.equal(one, other)


def test_rows_of_another_type_or_order_are_taken(made: Libraries) -> None:
    policy, rows = compiled_policy(), torch.randn(3, 4, dtype=torch.float64).T
    expected = tiny_policy().decide(rows)
    assert torch.equal(policy.decide(rows).scores, expected.scores)
    assert policy.decide(rows[:0]).action.shape == (0, policy.config.network.action_size)
    assert made.calls == [1], "nothing is made for no rows"


def test_beyond_so_many_decisions_are_the_ordinary_ones(made: Libraries) -> None:
    policy = compiled_policy()
    for count in range(1, KEPT + 3):
        assert policy.decide(torch.randn(count, 3)).index.shape == (count,)
    policy.decide(torch.randn(1, 3))
    assert made.calls == [2, *[1] * (KEPT - 1)]


def test_what_is_made_is_what_decides(made: Libraries) -> None:
    policy, rows = compiled_policy(), torch.randn(2, 3)
    policy.predict(rows.numpy(), deterministic=True)
    assert made.calls == [2], "row by row"
    policy.decide(rows)
    assert made.calls == [2, 1]
    decide_otherwise(policy, rows)
    assert made.calls == [2, 1], "draws, other counts and the mode alone are not"


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))]
)
def test_a_copy_has_its_own(again: Any, made: Libraries) -> None:
    policy, rows = compiled_policy(), torch.randn(2, 3)
    policy.decide(rows)
    other = again(policy)
    assert other.compiled
    other.decide(rows)
    policy.compiled = True
    policy.decide(rows)
    assert made.calls == [2, 1]


def test_threads_that_ask_at_once_have_one_made(made: Libraries) -> None:
    policy, rows, found = compiled_policy(), torch.randn(2, 3), []
    threads = [threading.Thread(target=lambda: found.append(policy.decide(rows))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.calls == [8] and len(found) == 8


def test_what_was_refused_once_is_refused_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Size] = []

    def refuse(_: Checkpoint, shape: torch.Size) -> Any:
        asked.append(shape)
        raise ConfigError("no compiler here")

    monkeypatch.setattr("gem_policy.policy.library_of", refuse)
    monkeypatch.setattr("gem_policy.policy.is_available", lambda: True)
    policy = compiled_policy()
    for count in (1, 1, 2):
        with pytest.raises(ConfigError, match="no compiler here"):
            policy.decide(torch.randn(count, 3))
    assert asked == [(1, 3)]
    policy.compiled = False
    assert policy.decide(torch.randn(2, 3)).supported.all()


# -- Files ----------------------------------------------------------------------------------------


class Process:
    """In place of the other process: writes down what it was given, as the library."""

    def __init__(self) -> None:
        self.made = 0
        self.error = ""

    def __call__(self, command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        program, given, library, *numbers = command[2:]
        assert program == "gem_policy.make_library" and env["PYTHONPATH"]
        if self.error:
            return subprocess.CompletedProcess(command, 1, "", f"much\n{self.error}\n")
        self.made += 1
        text = f"{len(Path(given).read_bytes())} {numbers}"
        Path(library).write_text(text)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Process:
    """Libraries lie in ``tmp_path/cache``; what is loaded is the file itself."""

    class Runner:
        def __init__(self, path: str, models: int) -> None:
            self.run = lambda given: [Path(path)]

    process = Process()
    monkeypatch.setenv("GEM_POLICY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", process)
    monkeypatch.setattr(torch._C._aoti, "AOTIModelContainerRunnerCpu", Runner)
    return process


@needed
def test_a_library_is_made_once_and_found_by_others(process: Process, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    (path,) = library_of(checkpoint, ROW)([])
    assert path.read_text() == f"{len(to_bytes(checkpoint))} ['1', '1', '3']"
    assert list((tmp_path / "cache").iterdir()) == [path], "and nothing else is left"
    assert library_of(tiny_checkpoint(), ROW)([]) == [path]
    assert process.made == 1, "the same policy again"
    (other,) = library_of(checkpoint, torch.Size([2, 3]))([])
    assert process.made == 2 and other != path


@needed
def test_a_damaged_library_is_made_again(process: Process, tmp_path: Path) -> None:
    (path,) = library_of(tiny_checkpoint(), ROW)([])
    whole = path.read_text()
    for damaged in (whole[:-1], "", whole + " "):
        path.write_text(damaged)
        assert library_of(tiny_checkpoint(), ROW)([]) == [path]
        assert path.read_text() == whole
    assert process.made == 4


@needed
def test_what_the_other_process_cannot_do_is_told_in_its_last_line(
    process: Process, tmp_path: Path
) -> None:
    process.error = "there is no compiler"
    with pytest.raises(ConfigError, match=r"made \(there is no compiler\).*leave out `compiled`"):
        library_of(tiny_checkpoint(), ROW)
    assert list((tmp_path / "cache").iterdir()) == []


@needed
def test_a_folder_that_cannot_be_written_is_told(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("GEM_POLICY_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"file exists|File exists"):
        library_of(tiny_checkpoint(), ROW)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_library_is_known_by_all_that_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_checkpoint()
    content = to_bytes(checkpoint)
    name = digest(content, ROW)
    assert digest(to_bytes(tiny_checkpoint()), ROW) == name
    config = checkpoint.config
    selection = replace(config, selection=config.selection.replace(kappa=0.125))
    others = {
        digest(to_bytes(tiny_checkpoint(seed=1)), ROW),
        digest(to_bytes(replace(checkpoint, config=selection)), ROW),
        digest(content, torch.Size([3, 1])),
    }
    changes = {
        "_sources": lambda: b"other code",
        "_processor": lambda: "another processor",
    }
    for attribute, change in changes.items():
        with monkeypatch.context() as patch:
            patch.setattr(ahead_of_time, attribute, change)
            others.add(digest(content, ROW))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 7)
        others.add(digest(content, ROW))
    assert len(others - {name}) == 6


def test_caches_are_where_they_are_for_this_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GEM_POLICY_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert libraries() == tmp_path / ".cache" / "gem_policy"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert libraries() == tmp_path / "xdg" / "gem_policy"
    monkeypatch.setenv("GEM_POLICY_CACHE", str(tmp_path / "mine"))
    assert libraries() == tmp_path / "mine"
    assert kept(tmp_path, "nothing") is None


@needed
def test_another_process_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real program, where there is no compiler; of where it runs it imports nothing."""
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEM_POLICY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "/nowhere/compiler")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"made \(.*[Cc]ompiler.*\).*GEM_POLICY_CACHE"):
        library_of(tiny_checkpoint(GOAL), torch.Size([1, 8]))
