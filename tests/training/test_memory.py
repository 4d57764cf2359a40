from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_datasets import random_episode, write_dataset
from tiny_runs import SHORT, TINY, run

from gem_policy.errors import ConfigError, DatasetError
from gem_policy.training import dataset as datasets
from gem_policy.training import memory
from gem_policy.training.dataset import load
from gem_policy.training.memory import LOADING, available_bytes, step_bytes, training_bytes
from gem_policy.training.preparation import check_training_room
from gem_policy.training.seeds import fit_seeds
from gem_policy.training.state import STATE_FILE
from gem_policy.training.trainer import Progress

LENGTHS = (5, 3, 8, 2, 6)


@pytest.fixture(autouse=True)
def written(root: Path) -> None:
    rng = np.random.default_rng(0)
    write_dataset("test/big-v0", [random_episode(n, rng) for n in LENGTHS])


def room(monkeypatch: pytest.MonkeyPatch, available: float | None) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: available)


def test_the_estimate_is_what_the_tensors_take() -> None:
    data = load("test/big-v0").transitions
    per_step = step_bytes(3, 2)
    last_observations = data.episodes * 3 * 4
    assert data.nbytes == len(data) * per_step + last_observations


def test_what_does_not_fit_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = sum(LENGTHS) * LOADING * step_bytes(3, 2)
    room(monkeypatch, needed)
    load("test/big-v0")
    room(monkeypatch, needed - 1)
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "Columns", None)  # nothing is allocated, nothing is read
        with pytest.raises(
            DatasetError, match=r"Reading `test/big-v0` needs.*24 steps.*max_steps=23"
        ):
            load("test/big-v0")
    assert len(load("test/big-v0", max_steps=23).transitions) == 18
    assert len(load("test/big-v0", episode_filter=lambda e: True).transitions) == 24
    room(monkeypatch, None)  # a system that does not say
    load("test/big-v0")


def test_a_run_is_not_thought_to_take_less_than_was_measured() -> None:
    assert training_bytes(step_bytes(8, 2)) >= 313
    assert training_bytes(step_bytes(17, 6)) >= 453
    for seeds, measured in {1: 400, 2: 657, 4: 856, 8: 1056}.items():
        assert training_bytes(84, seeds) >= measured


def test_what_cannot_be_trained_on_in_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = load("test/big-v0")
    steps = len(data.transitions)
    needed = steps * training_bytes(data.transitions.nbytes / steps)
    room(monkeypatch, needed + 1)
    check_training_room(data)
    room(monkeypatch, needed - 1)
    with pytest.raises(DatasetError, match="Training on `test/big-v0` needs.*max_steps="):
        run(data, tmp_path / "out")
    assert not (tmp_path / "out" / STATE_FILE).exists()


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")
def test_several_seeds_are_asked_for_once_and_before_the_first_update(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = load("test/big-v0")
    steps = len(data.transitions)
    asked: list[float] = []
    needed = steps * training_bytes(data.transitions.nbytes / steps, 2)

    def available() -> float:
        asked.append(needed + 1)
        return needed + 1 if len(asked) == 1 else 0.0  # what the run itself takes is no news

    monkeypatch.setattr(memory, "available_bytes", available)
    fit_seeds(data, tmp_path / "out", SHORT, seeds=2, network=TINY)
    assert len(asked) == 1
    room(monkeypatch, needed - 1)
    started: list[Progress] = []
    with pytest.raises(DatasetError, match="Training on `test/big-v0` needs.*max_steps="):
        fit_seeds(data, tmp_path / "no", SHORT, seeds=2, network=TINY, progress=started.append)
    assert started == []


@pytest.mark.parametrize("limit", [8, 9, 15, 16, 23, 24, 1000])
def test_the_first_episodes_are_read(limit: int) -> None:
    whole, part = load("test/big-v0").transitions, load("test/big-v0", max_steps=limit)
    expected, total = 0, 0
    for length in LENGTHS:
        if total + length > limit:
            break
        expected, total = expected + 1, total + length
    assert part.numbers.tolist() == list(range(expected))
    assert len(part.transitions) == total
    same = whole.select(torch.arange(expected))
    for name in ("observations", "actions", "rewards", "terminated", "truncated", "episode"):
        assert torch.equal(getattr(part.transitions, name), getattr(same, name)), name


def test_a_filter_is_asked_before_the_steps_are_counted() -> None:
    part = load("test/big-v0", max_steps=10, episode_filter=lambda e: e.steps != 8)
    assert part.numbers.tolist() == [0, 1, 3]


def test_too_few_steps_are_named() -> None:
    with pytest.raises(DatasetError, match=r"has 1 episode\(s\) within max_steps=7"):
        load("test/big-v0", max_steps=7)
    with pytest.raises(ConfigError, match="`max_steps` must be an integer >= 1"):
        load("test/big-v0", max_steps=0)


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group without limits, within another, that this process seems to be in."""
    told = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=10_000))
    monkeypatch.setitem(sys.modules, "psutil", told)
    (tmp_path / "own").write_text("7:cpu:/\n0::/jobs/mine\n")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    made = tmp_path / "groups" / "jobs" / "mine"
    made.mkdir(parents=True)
    return made


def limit(group: Path, most: object, used: int, freed: int = 0) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {freed}\n")


def test_a_containers_limit_is_a_limit(group: Path) -> None:
    assert available_bytes() == 10_000
    limit(group, "max", 300)
    assert available_bytes() == 10_000
    limit(group, 900, 300, freed=50)
    assert available_bytes() == 650
    limit(group.parent, 5_000, 4_600)  # of this and other jobs together
    assert available_bytes() == 400
    limit(group.parent, 5_000, 5_100)
    assert available_bytes() == 0
    limit(group.parent, 50_000, 100)
    limit(group, 40_000, 100)
    assert available_bytes() == 10_000


def test_a_limit_of_the_older_kind_is_one(group: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("9:memory:/docker/of-the-host\n")
    root = tmp_path / "groups" / "memory"
    root.mkdir()
    (root / "memory.limit_in_bytes").write_text("800\n")
    (root / "memory.usage_in_bytes").write_text("300\n")
    (root / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 20\n")
    assert available_bytes() == 520
    (tmp_path / "own").unlink()
    assert available_bytes() == 10_000


def test_the_system_is_asked_in_several_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMITS", {})
    told = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=12345))
    monkeypatch.setitem(sys.modules, "psutil", told)
    assert available_bytes() == 12345
    monkeypatch.setitem(sys.modules, "psutil", None)
    text = "MemTotal: 9 kB\nMemAvailable:    77 kB\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert available_bytes() == 77 * 1024
    text = "MemTotal: 9 kB\n"
    pages = {"SC_AVPHYS_PAGES": 3, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", lambda name: pages[name], raising=False)
    assert available_bytes() == 3 * 4096
    monkeypatch.delattr("os.sysconf")
    assert available_bytes() is None
