"""Candidates: modes first, a prefix whatever the budget, inside the box, the same for a state."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from fakes import MIXTURE, distribution_function
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import batches, mixtures, seeds

from gem_policy.candidates import propose
from gem_policy.mixture import GaussianMixture

counts = st.integers(1, 40)
scales = st.sampled_from([0.0, 0.3, 1.0, 2.0])


@given(mixtures(batches), counts, scales, st.one_of(st.none(), seeds))
@settings(max_examples=40)
def test_every_candidate_is_in_the_box_and_names_a_living_component(
    mixture: GaussianMixture, count: int, scale: float, seed: int | None
) -> None:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    actions, component = propose(mixture, count, generator, scale)
    batch, size = mixture.logits.shape[:-1], mixture.mean.shape[-1]
    assert actions.shape == (*batch, count, size)
    assert component.shape == (*batch, count)
    assert (actions.abs() <= 1).all()
    drawn = component[..., min(count, mixture.logits.shape[-1]) if seed is None else 0 :]
    assert (mixture.logits.gather(-1, drawn) > -1e29).all()


@given(mixtures(), counts, scales)
@settings(max_examples=40)
def test_the_means_come_first_by_falling_weight(
    mixture: GaussianMixture, count: int, scale: float
) -> None:
    actions, component = propose(mixture, count, None, scale)
    for place in reference.indices(*mixture.logits.shape[:-1]):
        logits = mixture.logits[place].tolist()
        order = sorted(range(len(logits)), key=lambda k: -logits[k])[:count]
        assert component[place][: len(order)].tolist() == order
        assert torch.equal(actions[place][: len(order)], mixture.mean[place][order])
    assert torch.equal(actions[..., 0, :], mixture.mode())


@given(mixtures(), counts, counts, scales)
@settings(max_examples=40)
def test_a_larger_budget_only_adds_candidates(
    mixture: GaussianMixture, one: int, other: int, scale: float
) -> None:
    few, many = sorted((one, other))
    small, large = propose(mixture, few, None, scale), propose(mixture, many, None, scale)
    assert torch.equal(small[0], large[0][..., :few, :])
    assert torch.equal(small[1], large[1][..., :few])


@given(mixtures(st.sampled_from([(3,), (3, 2)])), counts)
@settings(max_examples=30)
def test_a_states_candidates_do_not_depend_on_its_batch(
    mixture: GaussianMixture, count: int
) -> None:
    actions, component = propose(mixture, count)
    for place in reference.indices(*mixture.logits.shape[:-1]):
        row = GaussianMixture(mixture.logits[place], mixture.mean[place], mixture.log_std[place])
        alone = propose(row, count)
        assert torch.equal(alone[0], actions[place])
        assert torch.equal(alone[1], component[place])


@given(mixtures(), counts)
@settings(max_examples=30)
def test_a_scale_of_zero_leaves_the_means(mixture: GaussianMixture, count: int) -> None:
    for generator in (None, torch.Generator().manual_seed(0)):
        actions, component = propose(mixture, count, generator, 0.0)
        assert torch.equal(actions, mixture.pick(component)[0])


@pytest.mark.parametrize("seed", [None, 0], ids=["deterministic", "random"])
def test_candidates_follow_the_mixture(seed: int | None) -> None:
    """Kolmogorov-Smirnov at level 1e-6 (seed fixed); the low-discrepancy set does far better."""
    count = 4000
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    narrow = GaussianMixture(MIXTURE.logits, MIXTURE.mean * 0.5, MIXTURE.log_std - 1.5)
    actions, _ = propose(narrow, count, generator)  # nothing of it reaches the ends of the box
    drawn = actions[4:, 0].double().sort().values.numpy()
    below = np.arange(len(drawn)) / len(drawn)
    gap = np.abs(distribution_function(narrow, drawn) - below).max()
    assert gap < (2.7 / np.sqrt(count) if generator is not None else 0.01)


def test_random_candidates_are_fresh_and_the_seed_decides() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = propose(MIXTURE, 20, generator)[0], propose(MIXTURE, 20, generator)[0]
    assert not torch.equal(first, second)
    assert torch.equal(first, propose(MIXTURE, 20, torch.Generator().manual_seed(0))[0])


def test_the_deterministic_set_neither_reads_nor_moves_global_random_state() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = propose(MIXTURE, 37)[0]  # a size that no other test has put in the cache
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(propose(MIXTURE, 37)[0], first)


def test_candidates_of_a_decision_do_not_forbid_gradients_later() -> None:
    with torch.inference_mode():
        propose(MIXTURE, 23)
    mean = MIXTURE.mean.clone().requires_grad_()
    spread = MIXTURE.log_std.clone().requires_grad_()
    propose(GaussianMixture(MIXTURE.logits, mean, spread), 23)[0].sum().backward()
    assert mean.grad is not None and spread.grad is not None
