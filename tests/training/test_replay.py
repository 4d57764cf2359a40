"""Batches: which transitions, with which successors, and which returns ahead."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_datasets import random_episode, write_dataset
from strategies import seeds

from gem_policy.errors import TrainingError
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset, load
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import CHUNK, Sampler, look_ahead

CPU = torch.device("cpu")


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    seeds,
)
def test_returns_ahead_are_the_sum_written_out(
    lengths: list[int], steps: int, discount: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    rewards = rng.integers(-3, 4, len(episode)).astype(np.float32)
    continues = (rng.random(len(episode)) > 0.2).astype(np.float32)
    returns, discounts, taken = look_ahead(
        torch.from_numpy(rewards),
        torch.from_numpy(continues),
        torch.from_numpy(episode),
        steps,
        discount,
    )
    for t in range(len(episode)):
        total, factor, count = 0.0, 1.0, 0
        while count < steps and t + count < len(episode) and episode[t + count] == episode[t]:
            total += factor * float(rewards[t + count])
            factor *= discount * float(continues[t + count])
            count += 1
            if factor == 0:
                break
        assert float(returns[t]) == pytest.approx(total, rel=1e-5, abs=1e-5)
        assert float(discounts[t]) == pytest.approx(factor, rel=1e-5)
        assert int(taken[t]) == count


@given(st.integers(1, 1000), st.integers(1, 50), st.integers(0, 2**24 - 1), st.integers(0, 5))
def test_batches_are_a_function_of_seed_phase_and_update(
    size: int, batch: int, seed: int, phase: int
) -> None:
    forward, other = Sampler(size, batch, seed, phase), Sampler(size, batch, seed, phase)
    places = [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 3]
    expected = {step: forward(step).clone() for step in places}
    for step in reversed(places):
        drawn = other(step)
        assert torch.equal(drawn, expected[step])
        assert drawn.shape == (batch,)
        assert int(drawn.min()) >= 0 and int(drawn.max()) < size


def test_numbers_are_given_on_the_device() -> None:
    drawn = Sampler(10, 4, 0, 0, "meta")(CHUNK)
    assert (drawn.device.type, drawn.shape) == ("meta", (4,))


def test_seeds_and_phases_have_streams_of_their_own() -> None:
    streams = [
        tuple(Sampler(10**6, 4, seed, phase)(step).tolist())
        for seed in (0, 1, 2, 2**24 - 1)
        for phase in (0, 1, 2)
        for step in (0, 1, CHUNK)
    ]
    assert len(set(streams)) == len(streams)


@pytest.fixture
def dataset(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng = np.random.default_rng(0)
    episodes = [random_episode(4 + i, rng, terminated=i % 2 == 0) for i in range(6)]
    write_dataset("test/replay-v0", episodes)
    return load("test/replay-v0")


def test_every_transition_keeps_its_own_successor_and_end(dataset: Dataset) -> None:
    config = TrainConfig(holdout=0.3, reward_scale=2.0, reward_shift=-1.0, value_steps=3)
    prepared = prepare(dataset, config, CPU)
    for part in (prepared.training, prepared.held_out):
        batch = part.batch(torch.arange(len(part)))
        seen = prepared.normalizer.invert(batch.observations)
        after = prepared.normalizer.invert(batch.next_observations)
        whole = dataset.transitions.all()
        for i in range(len(part)):
            (j,) = (
                torch.nonzero(torch.isclose(whole.observations, seen[i], atol=1e-4).all(-1))
                .flatten()
                .tolist()
            )
            assert torch.allclose(after[i], whole.next_observations[j], atol=1e-4)
            actions = prepared.scaler.invert(batch.actions[i])
            assert torch.allclose(actions, whole.actions[j], atol=1e-5)
            assert float(batch.rewards[i]) == pytest.approx(
                2 * float(whole.rewards[j]) - 1, abs=1e-5
            )
            assert bool(batch.continues[i]) is not bool(dataset.transitions.terminated[j])
    assert len(prepared.training) + len(prepared.held_out) == len(dataset.transitions)


def test_a_terminal_reward_ends_the_return(dataset: Dataset) -> None:
    threshold = float(dataset.transitions.rewards.median())
    plain = prepare(dataset, TrainConfig(), CPU).training
    ending = prepare(dataset, TrainConfig(terminal_reward=threshold), CPU).training
    expected = plain.continues * (plain.rewards < threshold)
    assert torch.equal(ending.continues, expected)
    assert torch.equal(ending.lives, plain.continues) and torch.equal(plain.lives, plain.continues)
    assert 0 < float(expected.mean()) < 1


def test_rewards_that_prefer_nothing_are_refused(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    rng = np.random.default_rng(0)
    flat = [{**random_episode(5, rng), "rewards": np.full(5, -0.5)} for _ in range(3)]
    write_dataset("test/flat-v0", flat)
    with pytest.raises(TrainingError, match=r"Every reward of test/flat-v0 is -0.5.*equally good"):
        prepare(load("test/flat-v0"), TrainConfig(), CPU)
    # Where episodes end, each step that they go on is worth something, unless it pays nothing.
    ending = [random_episode(5, rng, terminated=True) for _ in range(3)]
    write_dataset("test/ending-v0", [{**one, "rewards": np.full(5, -0.5)} for one in ending])
    data = load("test/ending-v0")
    prepare(data, TrainConfig(), CPU)
    with pytest.raises(TrainingError, match="shifted 0.* an episode's end costs nothing"):
        prepare(data, TrainConfig(reward_scale=2.0, reward_shift=1.0), CPU)


def test_settings_out_of_range_are_named() -> None:
    for name, value in {
        "seed": 2**24,
        "batch_size": 0,
        "discount": 1.01,
        "expectile": 1.0,
        "critic_lr": math.nan,
        "weight_max": 0.5,
        "weight_floor": -0.1,
        "episode_temperature": 0.0,
        "holdout": 0.9,
        "responsibility_floor": -0.1,
        "value_steps": 0,
        "terminal_reward": math.inf,
    }.items():
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            TrainConfig(**{name: value})
