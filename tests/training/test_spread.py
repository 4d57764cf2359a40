from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import SHORT, TINY, random_dataset, run

from gem_policy import checkpoint
from gem_policy.config import NetworkConfig
from gem_policy.critics import build_critics
from gem_policy.errors import TrainingWarning
from gem_policy.training import export
from gem_policy.training.dataset import Dataset
from gem_policy.training.preparation import prepare
from gem_policy.training.spread import critic_spread, warn_of_small_spread
from gem_policy.training.trainer import Progress
from gem_policy.training.validation import evenly_spaced


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return random_dataset(tmp_path / "data", [6] * 5)


def test_the_spread_is_the_formula(dataset: Dataset) -> None:
    batch = evenly_spaced(prepare(dataset, SHORT, torch.device("cpu")).held_out, 100)
    critics = build_critics(NetworkConfig(3, 2, **TINY), torch.Generator().manual_seed(0))
    got = critic_spread(critics, batch, seed=3)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.rand(batch.actions.shape, generator=generator) * 2 - 1
    order = torch.randperm(len(drawn), generator=generator)
    asked = {"data": batch.actions, "dealt": batch.actions[order], "uniform": drawn}
    expected = {}
    with torch.no_grad():
        for name, actions in asked.items():
            values = [
                critics(batch.observations[i], actions[i].unsqueeze(0)).double().numpy()[:, 0]
                for i in range(len(actions))
            ]
            expected[name] = float(np.mean([v.std() for v in values]))
    expected["ratio"] = expected["dealt"] / expected["data"]
    assert got == pytest.approx(expected, rel=1e-4)
    alone = build_critics(NetworkConfig(3, 2, **{**TINY, "critics": 1}))
    none = {"data": 0.0, "dealt": 0.0, "uniform": 0.0, "ratio": None}
    assert critic_spread(alone, batch, 3) == none


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")
def test_a_run_logs_it_and_the_checkpoint_tells_it(dataset: Dataset, tmp_path: Path) -> None:
    seen: list[Progress] = []
    run(dataset, tmp_path / "out", progress=seen.append)
    told = checkpoint.load(tmp_path / "out").provenance["critic_spread"]
    logged = [p.metrics for p in seen if "critic/spread_ratio" in p.metrics]
    assert len(logged) == 1
    assert {k: logged[0][f"critic/spread_{k}"] for k in told} == pytest.approx(told)
    assert told["ratio"] == pytest.approx(told["dealt"] / told["data"])


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")  # of other things
def test_a_run_warns_of_critics_that_agree_better_off_the_data(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"data": 2.0, "dealt": 1.0, "uniform": 1.0, "ratio": 0.5}
    monkeypatch.setattr(export, "critic_spread", lambda *told: small)
    with pytest.warns(TrainingWarning, match=r"ratio 0\.50.*support_weight"):
        run(dataset, tmp_path / "out")


def test_a_ratio_below_one_is_warned_of() -> None:
    with pytest.warns(TrainingWarning, match=r"ratio 0\.50.*support_weight"):
        warn_of_small_spread({"data": 2.0, "dealt": 1.0, "ratio": 0.5})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_small_spread({"data": 1.0, "dealt": 1.0, "ratio": 1.0})
        warn_of_small_spread({"data": 0.0, "dealt": 0.0, "ratio": None})
