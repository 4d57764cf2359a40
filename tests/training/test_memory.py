from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_datasets import random_episode, write_dataset
from tiny_runs import SHORT

from gem_policy.errors import ConfigError, DatasetError
from gem_policy.training import dataset as datasets
from gem_policy.training import memory
from gem_policy.training.dataset import load
from gem_policy.training.memory import LOADING, available_bytes, step_bytes, training_bytes
from gem_policy.training.preparation import prepare

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


def test_what_cannot_be_trained_on_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("test/big-v0")
    steps = len(data.transitions)
    needed = steps * training_bytes(data.transitions.nbytes / steps)
    room(monkeypatch, needed + 1)
    prepare(data, SHORT, torch.device("cpu"))
    room(monkeypatch, needed - 1)
    with pytest.raises(DatasetError, match="Training on `test/big-v0` needs.*max_steps="):
        prepare(data, SHORT, torch.device("cpu"))


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


def test_the_system_is_asked_in_several_ways(monkeypatch: pytest.MonkeyPatch) -> None:
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
