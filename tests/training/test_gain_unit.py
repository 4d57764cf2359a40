from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import SHORT, TINY, random_dataset, run
from torch import Tensor

from gem_policy import checkpoint
from gem_policy.config import NetworkConfig
from gem_policy.critics import build_critics
from gem_policy.networks import CriticEnsemble
from gem_policy.policy import GEMPolicy
from gem_policy.training.dataset import Dataset
from gem_policy.training.gain_unit import ROWS, gain_unit
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Batch
from gem_policy.training.validation import evenly_spaced

CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return random_dataset(tmp_path / "data", [6] * 5)


def some(dataset: Dataset, rows: int = 100) -> Batch:
    return evenly_spaced(prepare(dataset, SHORT, CPU).training, rows)


def test_the_unit_is_the_formula(dataset: Dataset) -> None:
    batch = some(dataset)
    critics = build_critics(NetworkConfig(3, 2, **TINY), torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = [
            float(critics(one, action[None]).double().mean())
            for one, action in zip(batch.observations, batch.actions, strict=True)
        ]
    low, high = np.percentile(values, [25, 75])
    assert gain_unit(critics, batch) == pytest.approx((high - low) / 1.349, rel=1e-4)
    assert gain_unit(critics, some(dataset, 0)) == 0.0


class Fixed(CriticEnsemble):
    """Two members who say given values, one a little less and one a little more."""

    def __init__(self, values: Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.values = torch.stack([values - 1, values + 1]).unsqueeze(-1)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.values


@pytest.mark.parametrize("falls", [0, 200])
def test_of_normal_values_it_is_their_deviation_and_falls_do_not_stretch_it(
    dataset: Dataset, falls: int
) -> None:
    values = 3.0 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    values[:falls] = -500.0
    batch = replace(
        some(dataset), observations=torch.zeros(len(values), 3), actions=torch.zeros(len(values), 2)
    )
    assert (float(values.std()) > 45) == bool(falls)
    assert gain_unit(Fixed(values), batch) == pytest.approx(3.0, rel=0.05)


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")  # few updates
def test_a_run_measures_it_on_the_transitions_that_it_learned_from(
    dataset: Dataset, tmp_path: Path
) -> None:
    run(dataset, tmp_path / "run")
    policy = GEMPolicy(checkpoint.load(tmp_path / "run"), CPU)
    unit = policy.config.gain_unit
    assert unit == pytest.approx(gain_unit(policy.critics, some(dataset, ROWS)), rel=1e-4)
    assert unit > 0
