"""Losses against loop-written twins, and the identities that the method rests on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import arrays, mixtures, seeds

from gem_policy.mixture import GaussianMixture
from gem_policy.training.losses import (
    advantage_weights,
    critic_loss,
    expectile_loss,
    guided_em_loss,
)

flat_mixtures = mixtures(batch=st.sampled_from([(1,), (5,)]))


def tensors(*shape: int, seed: int = 0, count: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@given(st.integers(1, 4), st.integers(1, 6), st.floats(0.01, 0.99), seeds)
def test_expectile_loss_is_the_formula(e: int, b: int, tau: float, seed: int) -> None:
    q, value = tensors(e, b, seed=seed, count=2)
    got = expectile_loss(q, value, tau)
    expected = reference.expectile_loss(q.tolist(), value.tolist(), tau)
    assert float(got.loss) == pytest.approx(expected)
    assert float(got.advantage) == pytest.approx(float((q - value).mean()))
    assert float(got.value) == pytest.approx(float(value.mean()))


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.floats(0.05, 0.95))
def test_the_value_that_minimizes_it_is_the_expectile(sample: list[float], tau: float) -> None:
    """tau of the pull comes from above: tau E[(q - v)+] = (1 - tau) E[(v - q)+]."""
    q = torch.tensor([sample], dtype=torch.float64)
    low, high = min(sample), max(sample)
    for _ in range(80):  # bisection: the loss is convex in v
        middle = (low + high) / 2
        value = torch.full_like(q, middle).requires_grad_()
        (slope,) = torch.autograd.grad(expectile_loss(q, value, tau).loss, value)
        low, high = (low, middle) if slope.sum() > 0 else (middle, high)
    above = sum(max(x - low, 0) for x in sample)
    below = sum(max(low - x, 0) for x in sample)
    assert tau * above == pytest.approx((1 - tau) * below, abs=1e-6)


@given(st.integers(1, 4), st.integers(1, 6), st.floats(0, 1), seeds)
def test_critic_loss_is_the_formula(e: int, b: int, discount: float, seed: int) -> None:
    q, after = tensors(e, b, seed=seed, count=2)
    (rewards,) = tensors(b, seed=seed + 1)
    continues = (rewards > 0).double()
    got = critic_loss(q, rewards, continues, after, discount)
    expected = reference.critic_loss(
        q.tolist(), rewards.tolist(), continues.tolist(), after.tolist(), discount
    )
    assert float(got.loss) == pytest.approx(expected)
    spread = [reference.std_of(q[:, i].tolist()) for i in range(b)]
    assert float(got.spread) == pytest.approx(reference.mean_of(spread))


def test_a_members_gradient_is_what_it_would_be_alone() -> None:
    q, after = tensors(3, 5, count=2)
    (rewards,) = tensors(5, seed=1)
    continues = torch.ones(5, dtype=torch.float64)

    def gradient(members: slice) -> torch.Tensor:
        own = q[members].clone().requires_grad_()
        losses = critic_loss(own, rewards, continues, after[members], 0.9).loss
        losses = losses + expectile_loss(after[members], own, 0.8).loss
        (found,) = torch.autograd.grad(losses, own)
        return found

    together = gradient(slice(None))
    for e in range(3):
        assert torch.equal(gradient(slice(e, e + 1))[0], together[e])


def test_nothing_after_a_termination_counts() -> None:
    q, after = tensors(2, 4, count=2)
    (rewards,) = tensors(4)
    ended = torch.zeros(4, dtype=torch.float64)
    first = critic_loss(q, rewards, ended, after, 0.99).loss
    assert torch.equal(first, critic_loss(q, rewards, ended, after * 1e6, 0.99).loss)


@given(arrays((7,), ["ordinary", "ties", "huge"]), st.floats(0.01, 100), st.floats(1, 1e3))
def test_weights_are_clipped_exponentials(x: np.ndarray, temperature: float, top: float) -> None:
    got = advantage_weights(torch.from_numpy(x), temperature, top)
    assert torch.isfinite(got).all() and (got >= 0).all()
    expected = [reference.advantage_weight(float(a), temperature, top) for a in x]
    # The exponent itself is rounded: its error grows with it.
    assert got.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-30)


@given(flat_mixtures, st.sampled_from([0.0, 0.05, 0.3]), seeds)
def test_guided_em_is_the_formula(mixture: GaussianMixture, floor: float, seed: int) -> None:
    rows, size = mixture.logits.shape[0], mixture.mean.shape[-1]
    actions = torch.tanh(tensors(rows, size, seed=seed)[0])
    weights = tensors(rows, seed=seed)[0].exp()
    wide = GaussianMixture(*(x.double() for x in (mixture.logits, mixture.mean, mixture.log_std)))
    got = guided_em_loss(wide, actions, weights, floor)
    expected = reference.guided_em_loss(
        wide.logits.tolist(),
        wide.mean.tolist(),
        wide.log_std.tolist(),
        actions.tolist(),
        weights.tolist(),
        floor,
    )
    assert float(got.loss) == pytest.approx(expected, rel=1e-6)
    assert float(got.usage.sum()) == pytest.approx(1)
    assert (got.usage >= 0).all()


def parameters(mixture: GaussianMixture) -> list[torch.Tensor]:
    return [
        x.double().clone().requires_grad_() for x in (mixture.logits, mixture.mean, mixture.log_std)
    ]


@given(flat_mixtures, seeds)
def test_with_unit_weights_and_no_floor_the_gradient_is_that_of_the_likelihood(
    mixture: GaussianMixture, seed: int
) -> None:
    own = parameters(mixture)
    actions = torch.tanh(tensors(own[0].shape[0], own[1].shape[-1], seed=seed)[0])
    ones = torch.ones(actions.shape[0], dtype=torch.float64)
    em = torch.autograd.grad(guided_em_loss(GaussianMixture(*own), actions, ones).loss, own)
    likelihood = -GaussianMixture(*own).log_prob(actions.unsqueeze(-2)).mean()
    direct = torch.autograd.grad(likelihood, own)
    for a, b in zip(em, direct, strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-8 * float(1 + b.abs().max()))


@given(flat_mixtures, st.integers(0, 4), seeds)
def test_a_weight_of_zero_is_an_absent_transition(
    mixture: GaussianMixture, dropped: int, seed: int
) -> None:
    own = parameters(mixture)
    rows = own[0].shape[0]
    actions = torch.tanh(tensors(rows, own[1].shape[-1], seed=seed)[0])
    weights = torch.ones(rows, dtype=torch.float64)
    weights[dropped % rows] = 0.0
    loss = guided_em_loss(GaussianMixture(*own), actions, weights).loss
    gradient = torch.autograd.grad(loss, own)
    for g in gradient:
        assert (g[dropped % rows] == 0).all()


def test_the_floor_keeps_a_forgotten_component_alive() -> None:
    logits = torch.zeros(1, 2, dtype=torch.float64)
    mean = torch.tensor([[[0.0], [0.9]]], dtype=torch.float64, requires_grad=True)
    log_std = torch.full((1, 2, 1), -3.0, dtype=torch.float64)
    actions, ones = torch.zeros(1, 1).double(), torch.ones(1).double()
    pulls = []
    for floor in (0.0, 0.1):
        loss = guided_em_loss(GaussianMixture(logits, mean, log_std), actions, ones, floor).loss
        (gradient,) = torch.autograd.grad(loss, mean)
        pulls.append(abs(float(gradient[0, 1, 0])))
    assert pulls[0] < 1e-6 < 1 < pulls[1]
