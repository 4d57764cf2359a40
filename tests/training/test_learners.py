from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import SHORT, TINY, random_dataset

from gem_policy.config import NetworkConfig
from gem_policy.errors import ConfigError
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.learners import ValueLearner
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Ahead, Batch

CPU = torch.device("cpu")
ENDING = replace(SHORT, discount=0.9, expectile=0.8, terminal_reward=0.5)
GAMMA, TAU = ENDING.discount, ENDING.expectile


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return random_dataset(tmp_path / "data", [7] * 4)


def made(dataset: Dataset, config: TrainConfig) -> tuple[ValueLearner, Batch]:
    net = NetworkConfig(3, 2, **TINY)
    replay = prepare(dataset, config, CPU).training
    learner = ValueLearner(net, config, torch.Generator().manual_seed(1), CPU)
    with torch.no_grad():  # the slow copy, and what it says, differ from the values
        for parameter in learner.target.parameters():
            parameter.mul_(1.5)
    return learner, replay.batch(torch.arange(len(replay)))


def asymmetric(error: float) -> float:
    """``|tau - 1(error < 0)| error^2``."""
    return abs(TAU - (error < 0)) * error**2


@pytest.mark.parametrize("source", ["data", "critics"])
def test_values_are_expectiles_of_their_own_targets(dataset: Dataset, source: str) -> None:
    config = replace(ENDING, value_source=source)
    learner, batch = made(dataset, config)
    with torch.no_grad():
        value = learner.values(batch.observations).double().numpy()
        after = learner.target(batch.next_observations).double().numpy()
        q = learner.helper(batch.observations, batch.actions.unsqueeze(1)).double().numpy()
    members, count = value.shape
    expected = 0.0
    for e in range(members):
        for i in range(count):
            target = float(batch.rewards[i] + GAMMA * batch.continues[i] * after[e, i])
            if source == "critics":
                expected += (q[e, i, 0] - target) ** 2 / count
                target = q[e, i, 0]
            expected += asymmetric(target - value[e, i]) / count
    loss, metrics = learner.loss(batch)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["value/loss"]) == pytest.approx(expected, rel=1e-5)
    assert ("helper" in learner.modules) == (source == "critics")
    assert 0 < float(batch.continues.sum()) < count


def test_returns_of_several_steps_are_bootstrapped_behind_them(dataset: Dataset) -> None:
    config = replace(ENDING, value_steps=3)
    learner, batch = made(dataset, config)
    with torch.no_grad():
        value = learner.values(batch.observations).double().numpy()
        after = learner.target(batch.ahead.observations).double().numpy()
    targets = batch.ahead.returns.numpy() + batch.ahead.discounts.numpy() * after
    losses = [[asymmetric(x) for x in row] for row in targets - value]
    loss, _ = learner.loss(batch)
    assert float(loss.detach()) == pytest.approx(np.mean(losses, axis=1).sum(), rel=1e-5)


def test_with_one_outcome_and_action_a_state_both_rules_agree(dataset: Dataset) -> None:
    """Where a critic is exact, its expectile over the data's actions is that of the data."""
    learner, batch = made(dataset, ENDING)
    other, _ = made(dataset, replace(ENDING, value_source="critics"))
    with torch.no_grad():
        after = other.target(batch.next_observations)
        exact = batch.rewards + GAMMA * batch.continues * after
    other.helper.of_pairs = lambda *_: exact.unsqueeze(-1)  # type: ignore[method-assign]
    torch.testing.assert_close(other.loss(batch)[0], learner.loss(batch)[0])


@pytest.mark.parametrize(("source", "expected"), [("data", 0.8), ("critics", 0.0)])
def test_luck_counts_as_skill_only_by_the_data(source: str, expected: float) -> None:
    """A coin pays 1 or -1, whatever is done: its 0.9-expectile is 0.8, that of its mean is 0."""
    config = replace(
        SHORT, value_source=source, expectile=0.9, critic_lr=0.02, value_updates=300, discount=0.9
    )
    count = 64
    rewards = torch.tensor([1.0, -1.0]).repeat(count // 2)
    nothing, over = torch.zeros(count, 3), torch.zeros(count)
    batch = Batch(
        nothing,
        torch.zeros(count, 2),
        rewards,
        nothing,
        over,
        over,
        Ahead(rewards, over, nothing),
        torch.zeros(count, 0),
        torch.ones(count),
    )
    net = NetworkConfig(3, 2, **TINY)
    learner = ValueLearner(net, config, torch.Generator().manual_seed(1), CPU)
    for _ in range(config.value_updates):
        learner.update(batch)
    assert learner.values(nothing).detach().numpy() == pytest.approx(expected, abs=0.05)


def test_critics_of_one_step_know_no_other_number_of_steps() -> None:
    with pytest.raises(ConfigError, match="value_steps.*value_source"):
        TrainConfig(value_source="critics", value_steps=2)
    with pytest.raises(ConfigError, match="value_source"):
        TrainConfig(value_source="returns")
