"""The unit of rewards: 1 for ordinary ones; no run depends on what its rewards are counted in."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import SHORT, random_dataset, run

from gem_policy import checkpoint
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.preparation import prepare
from gem_policy.training.reward_scale import LARGEST, PEAK, SMALLEST, RewardScale

CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return random_dataset(tmp_path / "data", [9, 6, 9, 7, 5])


def paying(dataset: Dataset, factor: float) -> Dataset:
    """The dataset with other rewards."""
    data = dataset.transitions
    return replace(dataset, transitions=replace(data, rewards=data.rewards * factor))


def slow_size(dataset: Dataset, config: TrainConfig) -> float:
    """Mean magnitude of a reward, for the steps that count."""
    rewards = [r * config.reward_scale + config.reward_shift for r in dataset.transitions.rewards]
    steps = min(9.0, 1 / (1 - config.discount) if config.discount < 1 else math.inf)
    return float(sum(abs(r) for r in rewards)) / len(rewards) * steps


@pytest.mark.parametrize("discount", [0.5, 0.99, 1.0])
@pytest.mark.parametrize("factor", [1e-7, 1e-3, 1.0, 3.0, 1e3, 1e9])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (-2.0, 0.5)])
def test_the_unit_keeps_values_in_their_range(
    dataset: Dataset, factor: float, discount: float, scale: float, shift: float
) -> None:
    config = TrainConfig(discount=discount, reward_scale=scale, reward_shift=shift)
    data = paying(dataset, factor)
    found, size = RewardScale.of(data, config), slow_size(data, config)
    assert (found.factor, found.shift) == (scale, shift)
    if SMALLEST < size < LARGEST:
        assert found.unit == 1.0
    else:
        assert size / found.unit == pytest.approx(SMALLEST if size < 1 else LARGEST, rel=1e-4)
    rewards = data.transitions.rewards
    torch.testing.assert_close(found(rewards), (rewards * scale + shift) / found.unit)


@pytest.mark.parametrize(
    ("reward", "expected"), [(1.0, 1.0), (0.25, 5 / 12), (1e-6, 100e-6 / PEAK), (1e4, 1.0)]
)
def test_rare_rewards_are_not_lifted_out_of_reach(
    dataset: Dataset, reward: float, expected: float
) -> None:
    """One step of a hundred thousand is rewarded; a value holds a hundred of them at most."""
    data = dataset.transitions
    steps = 100_000
    rewards = torch.zeros(steps)
    rewards[77] = reward
    rare = replace(
        data,
        observations=torch.zeros(steps + 2, data.observations.shape[-1]),
        actions=torch.zeros(steps, data.actions.shape[-1]),
        rewards=rewards,
        terminated=torch.zeros(steps, dtype=torch.bool),
        truncated=torch.zeros(steps, dtype=torch.bool),
        episode=torch.arange(steps) // (steps // 2),
    )
    found = RewardScale.of(replace(dataset, transitions=rare), TrainConfig())
    assert found.unit == pytest.approx(expected)


def test_rewards_that_are_nothing_have_no_unit(dataset: Dataset) -> None:
    assert RewardScale.of(paying(dataset, 0.0), TrainConfig()).unit == 1.0


def test_ordinary_rewards_are_left_as_they_are_to_the_bit(dataset: Dataset) -> None:
    assert torch.equal(
        RewardScale(1.0, 0.0)(dataset.transitions.rewards), dataset.transitions.rewards
    )


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")
@pytest.mark.parametrize(("one", "other"), [(2.0**12, 2.0**20), (2.0**-20, 2.0**-14)])
def test_what_is_learned_does_not_depend_on_what_rewards_are_counted_in(
    dataset: Dataset, tmp_path: Path, one: float, other: float
) -> None:
    for name, factor in (("one", one), ("other", other)):
        run(paying(dataset, factor), tmp_path / name)
    made = {name: checkpoint.load(tmp_path / name) for name in ("one", "other")}
    for name, tensor in made["one"].tensors.items():
        torch.testing.assert_close(made["other"].tensors[name], tensor, rtol=1e-4, atol=1e-5)
    units = {name: own.provenance["rewards"]["unit"] for name, own in made.items()}
    assert units["other"] / units["one"] == pytest.approx(other / one)


def test_the_held_out_part_has_the_same_unit_and_so_has_every_seed(dataset: Dataset) -> None:
    data = paying(dataset, 1e6)
    prepared = [prepare(data, replace(SHORT, seed=seed), CPU) for seed in (0, 1)]
    assert prepared[0].scale == prepared[1].scale and prepared[0].scale.unit > 1e3
    for own in prepared:
        total = torch.cat([own.training.rewards, own.held_out.rewards]).double().sum()
        expected = data.transitions.rewards.double().sum() / own.scale.unit
        assert float(total) == pytest.approx(float(expected), rel=1e-4)
