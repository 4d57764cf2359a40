from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_datasets import random_episode, write_dataset
from tiny_runs import SHORT, TINY, run

from gem_policy import checkpoint
from gem_policy.config import NetworkConfig, SelectionConfig
from gem_policy.errors import TrainingWarning
from gem_policy.networks import CriticEnsemble, build_critics
from gem_policy.training.advantages import judge_both
from gem_policy.training.dataset import Dataset, load
from gem_policy.training.generalization import (
    Generalization,
    generalization,
    warn_of_poor_generalization,
)
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Batch
from gem_policy.training.run import gather_settings
from gem_policy.training.trainer import start_learner
from gem_policy.training.validation import evenly_spaced

CPU = torch.device("cpu")


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    rng = np.random.default_rng(0)
    write_dataset("test/general-v0", [random_episode(9, rng) for _ in range(5)])
    return load("test/general-v0")


def batches(dataset: Dataset) -> tuple[CriticEnsemble, Batch, Batch]:
    """Critics that nobody trained, and transitions of both kinds with advantages."""
    prepared = prepare(dataset, SHORT, CPU)
    net = NetworkConfig(3, 2, **TINY)
    value = start_learner("value", net, SHORT, CPU)
    parts = judge_both(prepared.training, prepared.held_out, value, SHORT)  # type: ignore[arg-type]
    critics = build_critics(net, torch.Generator().manual_seed(0))
    return critics, evenly_spaced(parts[0], 100), evenly_spaced(parts[1], 100)


def test_what_is_explained_is_the_formula(dataset: Dataset) -> None:
    critics, training, held_out = batches(dataset)
    found = generalization(critics, training, held_out)
    for batch, got in ((training, found.training), (held_out, found.held_out)):
        error, about, rows = 0.0, 0.0, range(len(batch.actions))
        target = [float(batch.advantages[i].double().mean()) for i in rows]
        for i in rows:
            with torch.no_grad():
                value = critics(batch.observations[i], batch.actions[i].unsqueeze(0))
            error += (float(value.double().mean()) - target[i]) ** 2
            about += (target[i] - float(np.mean(target))) ** 2
        assert got == pytest.approx(1 - error / about, rel=1e-4)


def test_critics_that_hit_their_targets_explain_all(dataset: Dataset) -> None:
    critics, training, held_out = batches(dataset)
    with torch.no_grad():
        value = critics(training.observations, training.actions.unsqueeze(-2)).squeeze(-1).T
    found = generalization(critics, replace(training, advantages=value), held_out)
    assert found.training == pytest.approx(1.0)
    flat = replace(held_out, advantages=torch.ones_like(held_out.advantages))
    assert generalization(critics, training, flat).held_out is None


@pytest.mark.parametrize(
    ("training", "held_out", "enough"),
    [
        (0.85, 0.86, True),
        (0.36, 0.39, True),
        (0.6, 0.3, True),
        (0.6, 0.29, False),
        (0.96, 0.06, False),
        (-0.1, -0.01, False),
        (0.5, 0.0, False),
        (None, 0.1, True),
        (0.9, None, True),
    ],
)
def test_half_of_what_is_explained_in_training_is_enough(
    training: float | None, held_out: float | None, enough: bool
) -> None:
    found = Generalization(training, held_out)
    assert found.enough == enough
    if enough:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_poor_generalization(found)
        assert found.selection == SelectionConfig()
    else:
        with pytest.warns(TrainingWarning, match=r"held-out episodes.*candidates=1.*episodes help"):
            warn_of_poor_generalization(found)
        assert found.selection == SelectionConfig(candidates=1)


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")
def test_nobodys_choice_is_made_by_what_was_measured(dataset: Dataset, tmp_path: Path) -> None:
    played: list[checkpoint.Checkpoint] = []

    def play(now: checkpoint.Checkpoint) -> dict[str, float]:
        played.append(now)
        return {}

    run(dataset, tmp_path / "out", evaluate=play)
    made = checkpoint.load(tmp_path / "out")
    assert [now.config.selection for now in played] == [made.config.selection]
    found = Generalization(**made.provenance["critic_generalization"])
    # A dozen updates on random rewards: these critics know nothing, and that is found out.
    assert not found.enough
    assert made.config.selection == SelectionConfig(candidates=1)


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")
def test_somebodys_choice_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    settings = gather_settings(None, ["candidates=5"], 0)
    run(dataset, tmp_path / "out", selection=settings.selection)
    assert checkpoint.load(tmp_path / "out").config.selection == SelectionConfig(candidates=5)
    assert gather_settings(None, ["dropout=0.5"], 0).selection is None
