"""Regularization for few demonstrations: early stopping, dropout, decay; each resumes exactly."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import SHORT, TINY, Stop, random_dataset, run, stop_at

from gem_policy import checkpoint
from gem_policy.config import NetworkConfig
from gem_policy.errors import TrainingError
from gem_policy.training import trainer
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.early_stopping import BestWeights
from gem_policy.training.learners import ActorLearner, BehaviorLearner
from gem_policy.training.preparation import prepare
from gem_policy.training.state import read_state
from gem_policy.training.trainer import Progress

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**vars(SHORT), **changes})


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return random_dataset(tmp_path / "data", [6] * 5)


def learner_of(settings: TrainConfig = SHORT) -> BehaviorLearner:
    net = NetworkConfig(3, 2, **TINY)
    return BehaviorLearner(net, settings, torch.Generator().manual_seed(0), CPU)


def test_the_best_weights_are_kept_and_come_back() -> None:
    learner = learner_of()
    best, copies = BestWeights(learner), []
    assert best.tensors() == {}
    best.put_back()  # nothing to put back yet
    for score in (1.0, 3.0, 2.0, math.nan, 3.0):
        with torch.no_grad():
            learner.parameters[0].add_(1.0)
        copies.append(learner.parameters[0].clone())
        best.see(score)
    assert (best.score, best.stale) == (3.0, 3)
    again = BestWeights(other := learner_of())
    again.restore({name: value.clone() for name, value in best.tensors().items()})
    assert (again.score, again.stale) == (3.0, 3)
    for one, whose in ((best, learner), (again, other)):
        one.put_back()
        assert torch.equal(whose.parameters[0], copies[1])
    again.restore({})
    assert again.score == 3.0


def scripted(monkeypatch: pytest.MonkeyPatch, scores: dict[str, list[float]]) -> dict[str, list]:
    """Replace the held-out scores; what was measured comes back, weights and all."""
    seen: dict[str, list[tuple[int, torch.Tensor]]] = {"behavior": [], "actor": []}

    def measured(phase: str, learner: Any, batch: Any) -> dict[str, float]:
        if phase not in seen:
            return {}
        seen[phase].append((learner.step, learner.parameters[0].detach().clone()))
        step = learner.step // 2 - 1
        return {f"{phase}/held_out_log_prob": scores[phase][step]}

    monkeypatch.setattr(trainer, "held_out_metrics", measured)
    return seen


def test_the_phase_ends_with_the_best_weights_and_after_its_patience(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"behavior": [1.0, 5.0, 4.0, 3.0, 9.0, 9.0], "actor": [1.0, 0.0, 2.0, 1.0, 3.0, 2.0]}
    seen = scripted(monkeypatch, scores)
    progress: list[Progress] = []
    settings = config(patience=2, validate_every=2)
    run(dataset, tmp_path / "out", settings, log_every=1000, progress=progress.append)
    steps = {phase: [p.step for p in progress if p.phase == phase] for phase in seen}
    assert steps["behavior"] == [1, 2, 3, 4, 5, 6, 7, 8]  # at 8 two in a row were no better
    done = [p.done for p in progress if p.phase == "behavior"]
    assert done == [1, 2, 3, 4, 5, 6, 7, 12]  # the rest is spared
    assert steps["actor"] == list(range(1, 13))
    tensors = checkpoint.load(tmp_path / "out").tensors
    first = {"behavior": "behavior.weights.0", "actor": "actor.weights.0"}
    for phase, at in {"behavior": 4, "actor": 10}.items():
        (best,) = {tuple(w.flatten().tolist()) for step, w in seen[phase] if step == at}
        assert tensors[first[phase]].flatten().tolist() == list(best)


def test_what_is_broken_where_a_phase_is_stopped_early_is_told_of_that_update(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, {"behavior": [1.0, 0.5] + [0.0] * 4, "actor": [0.0] * 6})
    honest = BehaviorLearner.update

    def broken(self: Any, batch: Any, told: bool) -> Any:
        metrics = honest(self, batch, told)
        return {**metrics, "behavior/loss": torch.tensor(math.nan)} if self.step == 4 else metrics

    monkeypatch.setattr(BehaviorLearner, "update", broken)
    with pytest.raises(TrainingError, match="by update 4 of the behavior phase. No state had been"):
        run(dataset, tmp_path / "out", config(patience=1, validate_every=2), log_every=100)


OPTIONS = {
    "stopping": {"patience": 2, "validate_every": 2},
    "patient": {"patience": 50, "validate_every": 3},
    "all": {"patience": 3, "validate_every": 2, "dropout": 0.2, "weight_decay": 0.01},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_stopped_and_resumed_is_the_run_that_was_not(
    dataset: Dataset, tmp_path: Path, name: str
) -> None:
    settings = config(**OPTIONS[name], policy_lr=0.05)
    whole = run(dataset, tmp_path / "whole", settings, log_every=100)
    for update in (7, 50):
        out = tmp_path / str(update)
        with pytest.raises(Stop):
            run(dataset, out, settings, log_every=3, progress=stop_at(update))
        assert run(dataset, out, settings, log_every=100) == whole, update


def test_a_kill_after_the_best_keeps_it(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"behavior": [1.0, 9.0, 4.0, 3.0, 2.0, 1.0], "actor": [0.0] * 6}
    seen = scripted(monkeypatch, scores)
    settings = config(patience=50, validate_every=2)
    with pytest.raises(Stop):
        run(dataset, tmp_path / "out", settings, log_every=2, progress=stop_at(9))
    state = read_state(tmp_path / "out")
    assert (state.phase, state.step) == ("behavior", 8)
    assert float(state.tensors["best/behavior/score"]) == 9.0
    (best, *_) = [w for step, w in seen["behavior"] if step == 4]
    assert torch.equal(state.tensors["best/behavior/behavior.weights.0"], best)
    run(dataset, tmp_path / "out", settings, log_every=2)
    tensors = checkpoint.load(tmp_path / "out").tensors
    assert torch.equal(tensors["behavior.weights.0"], best)


def test_measuring_changes_nothing_where_the_last_weights_are_the_best(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(dataset, tmp_path / "plain", config())
    seen = scripted(monkeypatch, {"behavior": [0.1 * i for i in range(6)], "actor": list(range(6))})
    run(dataset, tmp_path / "watched", config(patience=1, validate_every=2), log_every=100)
    assert [step for step, _ in seen["behavior"]] == [2, 4, 6, 8, 10, 12, 12]
    told = [checkpoint.load(tmp_path / name).tensors for name in ("plain", "watched")]
    for key in told[0]:
        assert torch.equal(told[0][key], told[1][key]), key


def test_decay_shrinks_the_weights_alone_by_rate_times_decay(dataset: Dataset) -> None:
    replay = prepare(dataset, SHORT, CPU).training
    batch = replay.batch(torch.arange(len(replay)))
    rate, decay = SHORT.policy_lr, 0.25
    net = NetworkConfig(3, 2, **TINY)
    for kind in (BehaviorLearner, ActorLearner):
        plain, decayed = (
            kind(net, config(weight_decay=x), torch.Generator().manual_seed(0), CPU)
            for x in (0.0, decay)
        )
        start = [p.detach().clone() for p in plain.parameters]
        for learner in (plain, decayed):
            learner.update(batch)
        names = [n for m in plain.modules.values() for n, _ in m.named_parameters()]
        assert {n.partition(".")[0] for n in names} == {"weights", "biases"}
        for name, before, a, b in zip(
            names, start, plain.parameters, decayed.parameters, strict=True
        ):
            lost = rate * decay * before if name.startswith("weights") else 0 * before
            torch.testing.assert_close(b.detach(), a.detach() - lost, atol=1e-7, rtol=1e-6)


def test_the_mixtures_alone_take_decay() -> None:
    net = NetworkConfig(3, 2, **TINY)
    for name, kind in trainer.PHASES.items():
        learner = kind(net, config(weight_decay=0.1), torch.Generator().manual_seed(0), CPU)
        groups = learner.optimizer.param_groups
        expected = [0.1, 0.0] if name in ("behavior", "actor") else [0]
        assert [g["weight_decay"] for g in groups] == expected
        assert sum(len(g["params"]) for g in groups) == len(learner.parameters)


@pytest.mark.parametrize(
    ("name", "value"),
    [("dropout", 1.0), ("weight_decay", -0.1), ("patience", -1), ("validate_every", 0)],
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        config(**{name: value})
