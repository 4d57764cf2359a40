from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import SHORT, random_dataset, run

from gem_policy.errors import TrainingError
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.divergence import longest_episode, stop_if_diverged, value_bound
from gem_policy.training.preparation import prepare
from gem_policy.training.state import STATE_FILE, read_state

CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return random_dataset(tmp_path / "data", [1, 7, 4, 9, 1, 3])


def test_the_bound_is_that_of_the_largest_reward_for_ever(dataset: Dataset) -> None:
    replay = prepare(dataset, TrainConfig(reward_scale=2.0, reward_shift=-1.0), CPU).training
    largest = float(replay.rewards.abs().max())
    assert value_bound(replay, 0.99) == pytest.approx(100 * largest)
    assert value_bound(replay, 0.0) == pytest.approx(largest)
    lengths = torch.bincount(replay.index - torch.arange(len(replay)))
    assert longest_episode(replay) == int(lengths.max())
    assert value_bound(replay, 1.0) == pytest.approx(int(lengths.max()) * largest)


@pytest.mark.parametrize(
    ("largest", "bound", "stops"),
    [(29, 10, False), (31, 10, True), (2.9, 0.01, False), (3.1, 0.01, True), (1e30, 1e30, False)],
)
def test_it_stops_at_three_times_the_bound(largest: float, bound: float, stops: bool) -> None:
    reading = {"value/largest": largest}
    if stops:
        told = f"{largest:.4g} by update 7 of the value phase.*{bound:.4g} at most.*KEPT THERE. "
        with pytest.raises(TrainingError, match=f"{told}.*critic_lr or target_rate.*reward_scale"):
            stop_if_diverged(reading, bound, "value", 7, "KEPT THERE.")
    else:
        stop_if_diverged(reading, bound, "value", 7, "KEPT THERE.")


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")
def test_values_that_run_away_stop_the_run_and_the_last_good_state_stays(
    dataset: Dataset, tmp_path: Path
) -> None:
    changes = {"critic_lr": 1.0, "target_rate": 1.0, "discount": 0.5, "expectile": 0.999}
    wild = TrainConfig(**{**vars(SHORT), **changes, "value_updates": 200})
    with pytest.raises(TrainingError, match=r"values diverge.*of the value phase"):
        run(dataset, tmp_path / "out", wild)
    state = read_state(tmp_path / "out")
    assert all(torch.isfinite(t).all() for t in state.tensors.values())
    assert (state.phase, state.step) == ("behavior", 12) or state.step % 5 == 0
    assert STATE_FILE in {p.name for p in (tmp_path / "out").iterdir()}
