from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import SHORT, TINY, random_dataset, run

from gem_policy.config import NetworkConfig
from gem_policy.training.advantages import (
    advantages_of,
    judge,
    judge_both,
    lower_bounds_of,
    weigh,
    weigh_both,
)
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.learners import ActorLearner, BehaviorLearner, CriticLearner, ValueLearner
from gem_policy.training.preparation import prepare
from gem_policy.training.trainer import Progress
from gem_policy.training.validation import evenly_spaced, held_out_metrics

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return random_dataset(tmp_path / "data", [9] * 8)


def test_every_phase_tells_of_held_out_data(dataset: Dataset, tmp_path: Path) -> None:
    seen: list[Progress] = []
    run(dataset, tmp_path / "out", progress=seen.append)
    kinds = {
        "behavior": "log_prob",
        "value": "loss",
        "critic": "loss",
        "actor": "log_prob",
    }
    for phase, kind in kinds.items():
        readings = [p.metrics for p in seen if p.phase == phase and p.metrics]
        assert len(readings) >= 3
        for reading in readings:
            assert np.isfinite(reading[f"{phase}/held_out_{kind}"])
            assert (f"{phase}/component_distance" in reading) == (kind == "log_prob")
        assert len({r[f"{phase}/held_out_{kind}"] for r in readings}) == len(readings)


@pytest.mark.parametrize("rows", [1, 4, 24, 1000])
def test_what_is_measured_is_spread_over_the_data(dataset: Dataset, rows: int) -> None:
    replay = prepare(dataset, SHORT, CPU).held_out
    batch = evenly_spaced(replay, rows)
    count = min(rows, len(replay))
    expected = [replay.actions[i * len(replay) // count].tolist() for i in range(count)]
    assert batch.actions.tolist() == expected


def test_held_out_metrics_are_the_formulas(dataset: Dataset) -> None:
    prepared = prepare(dataset, SHORT, CPU)
    net = NetworkConfig(3, 2, **TINY)

    def made(kind: type) -> object:
        return kind(net, SHORT, torch.Generator().manual_seed(1), CPU)

    value, critic, actor = made(ValueLearner), made(CriticLearner), made(ActorLearner)
    behavior = made(BehaviorLearner)
    assert isinstance(value, ValueLearner) and isinstance(critic, CriticLearner)
    training, held_out = judge_both(prepared.training, prepared.held_out, value, SHORT)
    assert torch.equal(training.advantages, judge(prepared.training, value, SHORT).advantages)
    raw = [advantages_of(x, value, SHORT) for x in (prepared.training, prepared.held_out)]
    unit = raw[0].double().mean(1).std(correction=0)
    torch.testing.assert_close(held_out.advantages, (raw[1].double() / unit).float())
    judged = training, held_out
    config = replace(SHORT, weight_floor=0.1)
    training, held_out = weigh_both(training, held_out, critic, config)
    assert torch.equal(training.weights, weigh(judged[0], critic, config).weights)
    bounds = [lower_bounds_of(x, critic, config).double() for x in judged]
    own, other = (
        torch.exp((x - bounds[0].mean()) / config.weight_temperature).clamp(max=20) for x in bounds
    )
    expected = other + 0.1 * own.mean()  # the floor is of the training part's mean
    torch.testing.assert_close(held_out.weights, expected.float())

    batch = held_out.batch(torch.arange(len(held_out)))
    for name, learner in {"behavior": behavior, "actor": actor}.items():
        assert isinstance(learner, BehaviorLearner | ActorLearner)
        own = batch if name == "actor" else prepared.held_out.batch(torch.arange(len(held_out)))
        density = learner.model(batch.observations).log_prob(batch.actions.unsqueeze(1)).detach()
        total = sum(float(own.weights[i] * density[i, 0]) for i in range(len(held_out)))
        got = held_out_metrics(name, learner, own)[f"{name}/held_out_log_prob"]
        assert got == pytest.approx(total / float(own.weights.sum()), rel=1e-4)
    error = critic.critics(batch.observations, batch.actions.unsqueeze(1)).squeeze(-1).T
    expected = float((error - batch.advantages).detach().square().sum() / len(held_out))
    got = held_out_metrics("critic", critic, batch)
    assert got == {"critic/held_out_loss": pytest.approx(expected, rel=1e-4)}
    assert not any(p.grad is not None for p in critic.parameters)


def test_a_learner_with_dropout_is_measured_without(dataset: Dataset) -> None:
    prepared = prepare(dataset, SHORT, CPU)
    batch = evenly_spaced(prepared.held_out, 50)
    net = NetworkConfig(3, 2, **TINY)
    found = []
    for rate in (0.0, 0.5):
        config = TrainConfig(**{**vars(SHORT), "dropout": rate})
        learner = BehaviorLearner(net, config, torch.Generator().manual_seed(1), CPU)
        found.append(held_out_metrics("behavior", learner, batch))
    assert found[0] == found[1]
