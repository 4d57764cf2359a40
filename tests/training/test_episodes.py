from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import SHORT, TINY, random_dataset

from gem_policy.config import NetworkConfig
from gem_policy.normalize import ActionScaler
from gem_policy.training.advantages import judge, weigh
from gem_policy.training.episodes import PENALTIES, episode_weights, fit_baseline
from gem_policy.training.learners import (
    ActorLearner,
    CriticLearner,
    ValueLearner,
    expect,
)
from gem_policy.training.preparation import prepare, replay
from gem_policy.training.replay import Sampler
from gem_policy.training.reward_scale import RewardScale
from gem_policy.training.trainer import network_for, start_learner
from gem_policy.training.transitions import Transitions

CPU = torch.device("cpu")


def weights_of(
    data: Transitions, other: Transitions, temperature: float | None, least: float = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of a handful of transitions."""
    return episode_weights(data, other, temperature, 20.0, least)


def episodes(starts: list[list[float]], rewards: list[list[float]]) -> Transitions:
    """Episodes that stay where they start, until they terminate."""
    lengths = torch.tensor([len(own) for own in rewards])
    steps = int(lengths.sum())
    last = torch.zeros(steps, dtype=torch.bool)
    last[lengths.cumsum(0) - 1] = True
    return Transitions(
        observations=torch.tensor(starts).repeat_interleave(lengths + 1, 0),
        actions=torch.zeros(steps, 1),
        rewards=torch.tensor([r for own in rewards for r in own]),
        terminated=last,
        truncated=torch.zeros_like(last),
        episode=torch.arange(len(rewards)).repeat_interleave(lengths),
    )


def slow_ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """Slope and level by the normal equations, of starts in deviations of all; inf: the mean."""
    if math.isinf(penalty):
        return np.zeros(x.shape[1]), float(y.mean())
    slope = np.linalg.solve(x.T @ x + penalty * len(y) * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    return slope, float(y.mean())


@given(st.integers(3, 12), st.integers(1, 4), st.integers(0, 2**16))
def test_the_baseline_is_ridge_regression_at_the_best_penalty(
    count: int, size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    starts = rng.standard_normal((count, size))
    returns = starts @ rng.standard_normal(size) * rng.integers(2) + rng.standard_normal(count)
    baseline, errors = fit_baseline(torch.from_numpy(starts), torch.from_numpy(returns))
    x = (starts - starts.mean(0)) / starts.std(0)
    found = []
    for penalty in (math.inf, *PENALTIES):
        slope, level = slow_ridge(x, returns, penalty)
        inverse = np.zeros((size, size))
        if not math.isinf(penalty):
            inverse = np.linalg.inv(x.T @ x + penalty * count * np.eye(size))
        leverage = 1 / count + np.diag(x @ inverse @ x.T)
        left_out = (returns - level - x @ slope) / (1 - leverage)
        found.append((float(np.mean(left_out**2)), slope, left_out))

    def told(left_out: np.ndarray) -> bool:
        """Better than the mean by more than a standard error."""
        gain = found[0][2] ** 2 - left_out**2
        return bool(gain.mean() > gain.std(ddof=1) / math.sqrt(count))

    better = [one for one in found[1:] if told(one[2])]
    error, slope, left_out = min(better or found[:1], key=lambda one: one[0])
    np.testing.assert_allclose(np.mean(errors.numpy() ** 2), error, rtol=1e-6)
    new = rng.standard_normal((5, size))
    expected = returns.mean() + (new - starts.mean(0)) / starts.std(0) @ slope
    np.testing.assert_allclose(baseline(torch.from_numpy(new)).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(errors.numpy(), left_out, atol=1e-6)


def test_an_infinite_penalty_leaves_the_mean_of_the_others() -> None:
    returns = torch.tensor([1.0, 2.0, 6.0, 7.0], dtype=torch.float64)
    baseline, errors = fit_baseline(torch.zeros(4, 3), returns)  # all start alike
    left_out = [float(r - (returns.sum() - r) / 3) for r in returns]
    np.testing.assert_allclose(errors.numpy(), left_out)
    np.testing.assert_allclose(baseline(torch.ones(2, 3)).numpy(), [4.0, 4.0])


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_weights_are_exponentials_of_standardized_returns(temperature: float) -> None:
    rewards = [[1.0, 1.0], [4.0, 0.0, -1.0], [10.0]]
    data = episodes([[0.0]] * 3, rewards)
    other = episodes([[0.0]] * 2, [[2.0], [50.0, 50.0]])
    own, unseen = episode_weights(data, other, temperature, 5.0, 1)
    returns = np.array([sum(r) for r in rewards])
    others = np.array([(returns.sum() - r) / 2 for r in returns])
    unit = (returns - others).std()
    expected = np.minimum(np.exp((returns - others) / unit / temperature), 5.0)
    np.testing.assert_allclose(own.numpy(), np.repeat(expected, [2, 3, 1]), rtol=1e-5)
    first = min(math.exp((2.0 - returns.mean()) / unit / temperature), 5.0)
    np.testing.assert_allclose(unseen.numpy(), [first, 5.0, 5.0], rtol=1e-5)


def test_where_an_episode_starts_is_not_held_against_it() -> None:
    """Far starts have lower returns whoever acts; the better agent has one more everywhere."""
    starts = [[float(i // 2)] for i in range(20)]
    rewards = [[-3.0 * (i // 2), float(i % 2)] for i in range(20)]
    data = episodes(starts, rewards)
    own, unseen = weights_of(data, data, 1.0)
    better = data.episode % 2 == 1
    assert float(own[better].min()) > 4 * float(own[~better].max())
    torch.testing.assert_close(unseen, own, rtol=0.3, atol=0.0)  # leave-one-out is a little more


@pytest.mark.parametrize(
    ("rewards", "temperature"),
    [
        ([[float(i), 1.0] for i in range(20)], None),
        ([[1.0, 2.0], [3.0], [0.1, 2.9]] * 10, 0.5),  # equal but for rounding
        ([[float(i)] for i in range(20)], 0.5),  # the return is the one transition's advantage
        ([[1.0, 2.0]], 0.5),
    ],
)
def test_where_episodes_say_nothing_all_weigh_the_same(
    rewards: list[list[float]], temperature: float | None
) -> None:
    data = episodes([[0.5]] * len(rewards), rewards)
    for weights in weights_of(data, data, temperature):
        assert torch.equal(weights, torch.ones(len(data)))


@pytest.mark.parametrize("least", [30, 40, 44, 45])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_so_many_effective_transitions_are_left(least: int, temperature: float) -> None:
    """At the least higher temperature of a ladder, or at the one asked for; all of 45 or less."""
    returns = np.random.default_rng(0).exponential(size=15)
    lengths = np.array([2, 3, 4] * 5)
    data = episodes(
        [[0.0]] * 15, [[float(r)] + [0.0] * (n - 1) for r, n in zip(returns, lengths, strict=True)]
    )
    weights = weights_of(data, data, temperature, least)[0].double().numpy()
    others = (returns.sum() - returns) / 14
    z = (returns - others) / (returns - others).std()

    def at(steps: int) -> tuple[np.ndarray, float]:
        found = np.minimum(np.exp(z / (temperature * 2 ** (steps / 4))), 20.0).repeat(lengths)
        return found, found.sum() ** 2 / (found**2).sum()

    steps = next((k for k in range(100) if at(k)[1] >= least), None) if least < 45 else None
    assert steps != 0
    expected = np.ones(45) if steps is None else at(steps)[0]
    np.testing.assert_allclose(weights, expected, rtol=1e-4)


def test_the_actor_gets_them_on_top_of_its_advantages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gem_policy.training.preparation.LEAST_TRANSITIONS", 1)
    dataset = random_dataset(tmp_path, [5, 9, 7, 6, 8, 4])
    data = dataset.transitions
    ended = replace(data, terminated=data.truncated, truncated=data.terminated)
    dataset = replace(dataset, transitions=ended)
    config = replace(SHORT, episode_temperature=0.7)
    parts = [
        prepare(dataset, own, CPU) for own in (config, replace(SHORT, episode_temperature=None))
    ]
    net = network_for(dataset, {"critics": 2})
    value = expect(start_learner("value", net, config, CPU), ValueLearner)
    critic = expect(start_learner("critic", net, config, CPU), CriticLearner)
    with_them, without = (weigh(judge(p.training, value, config), critic, config) for p in parts)
    u = parts[0].training.episode_weights
    assert len(u.unique()) == 4  # of the episodes that are trained on
    assert bool((parts[0].training.weights == 1).all()), "until the actor's turn"
    torch.testing.assert_close(with_them.weights, without.weights * u)
    expected = episode_weights(
        *(part.transitions for part in dataset.split(1 - config.holdout, config.seed)), 0.7, 20.0, 1
    )
    assert torch.equal(u, expected[0])
    assert torch.equal(parts[0].held_out.episode_weights, expected[1])


def test_an_actor_tells_the_better_agent_where_both_pass() -> None:
    """Two agents do the opposite in one state; only ten steps later is it told who was right."""
    rng = np.random.default_rng(0)
    signs = [1.0, -1.0, -1.0] * 20  # the better agent is the rarer one
    starts = [[float(rng.normal())] for _ in signs]
    data = episodes(starts, [[0.0] * 10 + [max(s, 0.0)] for s in signs])
    actions = torch.tensor(signs).repeat_interleave(11).unsqueeze(-1) * 0.5
    noise = torch.from_numpy(rng.normal(size=actions.shape) * 0.05).float()
    data = replace(data, actions=actions + noise)
    config = replace(SHORT, actor_updates=300, policy_lr=0.01, batch_size=128)
    net = NetworkConfig(1, 1, **{**TINY, "actor_hidden": (16,)})
    box = ActionScaler(-torch.ones(1), torch.ones(1))
    modes = {}
    for temperature in (None, 0.5):
        weights, _ = weights_of(data, data, temperature)
        transitions = replace(
            replay(data, None, box, config, RewardScale(1.0, 0.0), CPU), weights=weights
        )
        learner = expect(start_learner("actor", net, config, CPU), ActorLearner)
        sampler = Sampler(len(data), config.batch_size, 0, 3)
        while learner.step < learner.updates:
            learner.update(transitions.batch(sampler(learner.step), learner.reads))
        with torch.no_grad():
            mixture = learner.model(torch.zeros(1, 1))
        modes[temperature] = float(mixture.mean[0, int(mixture.logits[0].argmax()), 0])
    assert modes[None] == pytest.approx(-0.5, abs=0.1)
    assert modes[0.5] == pytest.approx(0.5, abs=0.1)


# -- which returns count -------------------------------------------------------------------------


def cut(data: Transitions, lengths: list[int]) -> Transitions:
    """The first steps of each episode alone, truncated."""
    first = data.lengths.cumsum(0) - data.lengths
    within = torch.arange(len(data)) - first[data.episode]
    keep = within < torch.tensor(lengths)[data.episode]
    rows = torch.arange(len(data.observations))
    number = torch.repeat_interleave(torch.arange(data.episodes), data.lengths + 1)
    place = rows - (first + torch.arange(data.episodes))[number]
    last = within[keep] == torch.tensor(lengths)[data.episode[keep]] - 1
    return Transitions(
        observations=data.observations[place <= torch.tensor(lengths)[number]],
        actions=data.actions[keep],
        rewards=data.rewards[keep],
        terminated=torch.zeros_like(last),
        truncated=last,
        episode=data.episode[keep],
    )


@pytest.mark.parametrize("reward", [1.0, -1.0])
def test_an_episode_that_was_cut_short_is_neither_good_nor_bad(reward: float) -> None:
    starts = [[0.0]] * 6
    data = episodes(starts, [[reward * (1 + i / 10)] * 8 for i in range(6)])
    data = cut(data, [8, 8, 8, 8, 5, 2])
    whole = data.select(torch.arange(4))
    found, _ = weights_of(data, whole, 0.5)
    alone, unseen = weights_of(whole, whole, 0.5)
    _, held_out = weights_of(whole, data, 0.5)
    assert torch.equal(found[: len(whole)], alone) and float(alone.std()) > 0
    assert torch.equal(held_out[: len(whole)], unseen)
    assert bool((found[len(whole) :] == 1).all()) and bool((held_out[len(whole) :] == 1).all())
    # One that terminates has come to its end, however short.
    ended = replace(data, terminated=data.truncated, truncated=data.terminated)
    short = float(weights_of(ended, whole, 0.5)[0][-1])
    assert short < 1 if reward > 0 else short > 1


def test_one_episode_that_is_longer_makes_no_others_cut() -> None:
    """Two time limits, and one episode that was let go on beyond: all of them came to their end."""
    lengths = [5] * 6 + [8] * 6 + [9]
    data = episodes([[0.0]] * 13, [[float(i % 5)] * n for i, n in enumerate(lengths)])
    data = replace(data, terminated=data.truncated, truncated=data.terminated)
    ended = replace(data, terminated=data.truncated, truncated=data.terminated)
    found, _ = weights_of(data, data, 0.5)
    assert torch.equal(found, weights_of(ended, ended, 0.5)[0]) and float(found.std()) > 0


@pytest.mark.parametrize("scaling", [(-1.0, 0.0), (-0.5, 0.25), (2.0, -3.0)])
def test_returns_are_those_of_the_rewards_that_are_trained_on(
    scaling: tuple[float, float],
) -> None:
    factor, shift = scaling
    rng = np.random.default_rng(3)
    lengths = rng.integers(3, 9, 7)
    data = episodes([[0.0]] * 7, [rng.standard_normal(n).tolist() for n in lengths])
    paid = replace(data, rewards=data.rewards * factor + shift)
    found = episode_weights(data, data, 0.5, 20.0, 1, factor, shift)
    expected = episode_weights(paid, paid, 0.5, 20.0, 1)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(found[0], episode_weights(data, data, 0.5, 20.0, 1)[0], atol=0.05)


def test_costs_are_weighed_as_costs(tmp_path: Path) -> None:
    data = random_dataset(tmp_path, [9] * 1200)
    parts = data.split(0.98, 0)
    config = replace(SHORT, holdout=0.02, reward_scale=-1.0)
    weights = prepare(data, config, CPU).training.episode_weights
    assert len(weights) > 10_000 and float(weights.std()) > 0
    returns = parts[0].transitions.returns[parts[0].transitions.episode]
    assert float(torch.corrcoef(torch.stack([weights.double(), returns]))[0, 1]) < -0.3
