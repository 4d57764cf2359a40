"""The learned step: units, a known system, ends, and runs that use it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import SHORT, TINY, Stop, random_dataset, run, stop_at

from gem_policy import GEMPolicy
from gem_policy.config import NetworkConfig
from gem_policy.critics import LookaheadCritics
from gem_policy.errors import TrainingError
from gem_policy.training.advantages import judge
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.learners import ValueLearner, expect
from gem_policy.training.lookahead_learner import LookaheadLearner
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Replay, Sampler
from gem_policy.training.seeds import fit_seeds
from gem_policy.training.state import read_state
from gem_policy.training.trainer import Progress, start_learner

# What the short runs learn is beside the point, and so is what they warn of.
pytestmark = pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")

CPU = torch.device("cpu")
AHEAD: dict[str, Any] = {**TINY, "critic_lookahead": True, "step_hidden": (8,)}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return random_dataset(tmp_path / "data", [9] * 5)


def begun(
    dataset: Dataset, config: TrainConfig = SHORT
) -> tuple[LookaheadLearner, ValueLearner, Replay]:
    """A learner that knows its values and units, before its first update."""
    net = NetworkConfig(3, 2, **AHEAD)
    value = expect(start_learner("value", net, config, CPU), ValueLearner)
    training = judge(prepare(dataset, config, CPU).training, value, config)
    learner = expect(start_learner("critic", net, config, CPU), LookaheadLearner)
    learner.begin(value, training)
    return learner, value, training


def test_units_are_those_of_the_data(dataset: Dataset) -> None:
    config = replace(SHORT, discount=0.9, reward_scale=3.0, reward_shift=-0.5)
    learner, value, training = begun(dataset, config)
    units, row = learner.critics.units, training.index.numpy()
    rows, rewards = training.rows.double().numpy(), training.rewards.double().numpy()
    np.testing.assert_allclose(units.change, (rows[row + 1] - rows[row]).std(0), rtol=1e-4)
    assert float(units.reward_mean) == pytest.approx(rewards.mean(), rel=1e-4)
    assert float(units.reward_std) == pytest.approx(rewards.std(), rel=1e-4)
    assert float(units.discount) == pytest.approx(0.9)
    with torch.no_grad():
        v = value.values(training.rows).double().numpy()
    after = 0.9 * training.continues.numpy() * v[:, row + 1]
    advantage = (rewards + after - v[:, row]).mean(0)
    assert float(units.advantage) == pytest.approx(advantage.std(), rel=1e-3)


def test_the_values_are_the_finished_ones_and_stay(dataset: Dataset) -> None:
    learner, value, training = begun(dataset)
    sampler = Sampler(len(training), 16, 0, 2)
    for update in range(5):
        learner.update(training.batch(sampler(update)))
    for name, tensor in value.values.state_dict().items():
        assert torch.equal(learner.critics.values.state_dict()[name], tensor), name
        assert learner.critics.values.state_dict()[name] is not tensor


@pytest.mark.parametrize("ends", [True, False])
def test_a_known_system_is_learned(ends: bool) -> None:
    """s' = 0.9 s + 0.3 a in two numbers, the third never changes; an end where the first is large.

    The return also ends where the second is, as ``terminal_reward`` may have it: nothing of the
    step.
    """
    generator = torch.Generator().manual_seed(0)
    count = 4000
    before = torch.rand(count, 3, generator=generator) * 2 - 1
    actions = torch.rand(count, 2, generator=generator) * 2 - 1
    after = before.clone()
    after[:, :2] = 0.9 * before[:, :2] + 0.3 * actions
    stopped, declared = (after[:, 0] > 0.5) & ends, after[:, 1] > 0.3
    rewards = before[:, 1] - actions[:, 0]
    places = 2 * torch.arange(count)
    replay = Replay(
        rows=torch.stack([before, after], 1).flatten(0, 1),
        index=places,
        actions=actions,
        rewards=rewards,
        continues=(~(stopped | declared)).float(),
        lives=(~stopped).float(),
        ahead_returns=rewards,
        ahead_discounts=torch.ones(count),
        ahead_rows=places + 1,
        advantages=torch.zeros(count, 2),
        episode_weights=torch.ones(count),
        weights=torch.ones(count),
    )
    config = TrainConfig(critic_updates=800, critic_lr=0.01, terminal_reward=100.0)
    net = NetworkConfig(3, 2, **{**AHEAD, "step_hidden": (32, 32)})
    value = expect(start_learner("value", net, config, CPU), ValueLearner)
    learner = expect(start_learner("critic", net, config, CPU), LookaheadLearner)
    learner.begin(value, replay)
    assert float(learner.critics.units.change[2]) == 0.0
    sampler = Sampler(count, 256, 0, 2)
    for update in range(config.critic_updates):
        learner.update(replay.batch(sampler(update)))
    critics: LookaheadCritics = learner.critics
    with torch.no_grad():
        change, reward, logit = critics.predict(before, actions.unsqueeze(-2))
    moved = change.squeeze(-2) * critics.units.change
    assert float((moved - (after - before)).abs().max()) < 0.1
    assert bool((moved[..., 2] == 0).all())
    paid = reward.squeeze(-1) * critics.units.reward_std + critics.units.reward_mean
    assert float((paid - rewards).square().mean()) < 0.01 * float(rewards.var())
    sure = (after[:, 0] - 0.5).abs() > 0.05
    told = torch.sigmoid(logit.squeeze(-1)) > 0.5
    assert bool((told == ~stopped)[:, sure].float().mean() > 0.99)


def test_several_steps_ahead_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    told: list[Progress] = []
    with pytest.raises(TrainingError, match="critic_steps=2.*critic_lookahead"):
        run(dataset, tmp_path, replace(SHORT, critic_steps=2), network=AHEAD, progress=told.append)
    assert told == [], "before anything is trained"
    with pytest.raises(TrainingError, match="critic_steps=2.*critic_lookahead"):
        fit_seeds(dataset, tmp_path, replace(SHORT, critic_steps=2), seeds=2, network=AHEAD)


@pytest.mark.parametrize("update", [20, 33, 38, 44, 50])
def test_a_run_stopped_anywhere_and_resumed_is_the_run_that_was_not(
    dataset: Dataset, tmp_path: Path, update: int
) -> None:
    whole = run(dataset, tmp_path / "whole", network=AHEAD)
    with pytest.raises(Stop):
        run(dataset, tmp_path / "again", network=AHEAD, progress=stop_at(update))
    assert run(dataset, tmp_path / "again", network=AHEAD) == whole


def test_the_policy_of_a_run_chooses_as_its_learners_do(dataset: Dataset, tmp_path: Path) -> None:
    run(dataset, tmp_path, network=AHEAD)
    policy = GEMPolicy.load(tmp_path / "model.safetensors", device="cpu")
    assert isinstance(policy.critics, LookaheadCritics)
    state = read_state(tmp_path)
    saved = state.own("critic")
    own = policy.critics.state_dict()
    assert {name for name in saved if not name.startswith("adam.")} == set(own)
    for name, tensor in own.items():
        assert torch.equal(saved[name], tensor), name
    values = {k.removeprefix("value."): v for k, v in state.own("value").items()}
    assert torch.equal(values["weights.0"], own["values.weights.0"])
