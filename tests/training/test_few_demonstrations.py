"""What is left to the trainer follows the size of the dataset, is recorded, and kept by a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import SHORT, TINY, random_dataset, run

from gem_policy import checkpoint
from gem_policy.config import NetworkConfig
from gem_policy.training import few_demonstrations
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.few_demonstrations import DECAY, WIDE, settle_decay
from gem_policy.training.seeds import fit_seeds
from gem_policy.training.state import read_state
from gem_policy.training.trainer import network_for

# What the short runs learn is beside the point, and so is what they warn of.
pytestmark = pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return random_dataset(tmp_path / "data", [9] * 5)


@pytest.mark.parametrize(("least", "expected"), [(45, DECAY), (44, 0.0)])
def test_few_transitions_decay_and_many_do_not(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, least: float, expected: float
) -> None:
    monkeypatch.setattr(few_demonstrations, "LEAST_TRANSITIONS", least)
    config = TrainConfig(seed=3, policy_lr=0.01)
    assert settle_decay(config, dataset) == replace(config, weight_decay=expected)


@pytest.mark.parametrize("wanted", [0.0, 0.02])
def test_a_decay_that_is_given_stays(dataset: Dataset, wanted: float) -> None:
    config = TrainConfig(weight_decay=wanted)
    assert settle_decay(config, dataset) == config


def test_few_transitions_have_wide_mixtures_and_many_do_not(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = network_for(dataset, None)
    assert few == NetworkConfig(few.observation_size, few.action_size, **WIDE)
    given = network_for(dataset, {"actor_hidden": (8,), "critics": 3})
    assert given == replace(few, actor_hidden=(8,), critics=3)
    monkeypatch.setattr(few_demonstrations, "LEAST_TRANSITIONS", 44)
    many = network_for(dataset, {})
    assert many == NetworkConfig(few.observation_size, few.action_size)


def test_runs_are_those_with_the_decay_and_record_it(dataset: Dataset, tmp_path: Path) -> None:
    explicit = replace(SHORT, weight_decay=DECAY)
    left = run(dataset, tmp_path / "a")
    assert left == run(dataset, tmp_path / "b", explicit)
    assert left != run(dataset, tmp_path / "c", replace(SHORT, weight_decay=0.0))
    train = checkpoint.load(tmp_path / "a").provenance["train"]
    assert train["weight_decay"] == DECAY
    assert read_state(tmp_path / "a").run["train"] == json.loads(json.dumps(train))
    many = [
        [path.read_bytes() for path in fit_seeds(dataset, tmp_path / n, c, seeds=2, network=TINY)]
        for n, c in (("d", SHORT), ("e", explicit))
    ]
    assert many[0] == many[1]
