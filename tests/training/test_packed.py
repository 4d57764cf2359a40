"""Packed transitions against the fields gathered one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import SHORT, random_dataset
from torch import Tensor

from gem_policy.training import replay as replays
from gem_policy.training import shared_replay
from gem_policy.training.dataset import Dataset
from gem_policy.training.packed import ALIGNMENT, PackedTransitions
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import FIELDS, Batch, Replay, Sampler
from gem_policy.training.shared_replay import SharedReplay, SharedSampler, share

CPU = torch.device("cpu")
READS = [
    FIELDS,
    frozenset({"observations", "actions"}),
    frozenset({"observations", "ahead"}),
    frozenset({"observations", "actions", "weights", "advantages"}),
    frozenset({"observations", "next_observations", "rewards", "continues"}),
]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return random_dataset(tmp_path / "data", [9, 4, 12, 7, 5])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """More parts than one, the last of them smaller."""
    for module in (replays, shared_replay):
        monkeypatch.setattr(module, "ROWS", 8)


def judged(transitions: Replay | SharedReplay, rows: int) -> Replay | SharedReplay:
    generator = torch.Generator().manual_seed(1)
    return replace(
        transitions,
        advantages=torch.randn(rows, 3, generator=generator),
        weights=torch.rand(rows, generator=generator),
    )


def assert_same(found: Batch, expected: Batch) -> None:
    for name, value in vars(expected).items():
        other = getattr(found, name)
        if isinstance(value, Tensor):
            assert torch.equal(other, value), name
            assert other.shape == value.shape, name
        else:
            assert_same(other, value)


@pytest.mark.parametrize("reads", READS, ids=lambda reads: "-".join(sorted(reads)))
def test_a_packed_batch_is_the_batch(dataset: Dataset, reads: frozenset[str]) -> None:
    training = prepare(dataset, SHORT, CPU).training
    training = judged(training, len(training))  # type: ignore[assignment]
    packed = PackedTransitions(training, reads)
    assert packed.table.shape[-1] % ALIGNMENT == 0 and len(packed.table) == len(training)
    for step in range(3):
        chosen = Sampler(len(training), 16, 0, 0)(step)
        assert_same(packed.batch(chosen), training.batch(chosen, reads))


@pytest.mark.parametrize("reads", READS, ids=lambda reads: "-".join(sorted(reads)))
def test_a_packed_batch_of_several_seeds_is_theirs(dataset: Dataset, reads: frozenset[str]) -> None:
    configs = [replace(SHORT, seed=seed, holdout=0.5) for seed in (4, 5, 6)]
    shared = share(dataset, configs, CPU)
    shared = judged(shared, len(shared.numbers))  # type: ignore[assignment]
    packed = PackedTransitions(shared, reads)
    for step in range(3):
        chosen = SharedSampler(shared, configs, 1)(step)
        assert_same(packed.batch(chosen), shared.batch(chosen, reads))
