"""The mixture as a probability density: against a loop-written twin, quadrature and statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from fakes import MIXTURE, distribution_function
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from strategies import batches, mixtures, seeds

from gem_policy.mixture import GaussianMixture


def in_box(mixture: GaussianMixture, count: int, seed: int) -> torch.Tensor:
    """Actions in the closed box, corners and centers among them."""
    batch, size = mixture.logits.shape[:-1], mixture.mean.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    actions = torch.rand((*batch, count, size), generator=generator) * 2.4 - 1.2
    return actions.clamp(-1, 1)


@given(mixtures(batches), st.integers(1, 4), seeds)
def test_log_prob_is_the_formula(mixture: GaussianMixture, count: int, seed: int) -> None:
    actions = in_box(mixture, count, seed)
    got = mixture.log_prob(actions)
    assert got.shape == actions.shape[:-1]
    parts = mixture.component_log_prob(actions)
    for place in reference.indices(*mixture.logits.shape[:-1]):
        args = [x[place].double().tolist() for x in (mixture.logits, mixture.mean, mixture.log_std)]
        for n in range(count):
            action = actions[place][n].double().tolist()
            expected = reference.log_prob(*args, action)
            # Far out in units of a tiny std, the exponent is huge and so is its rounding.
            assert float(got[place][n]) == pytest.approx(expected, rel=2e-5, abs=2e-4)
            components = reference.component_log_prob(*args, action)
            assert parts[place][n].tolist() == pytest.approx(components, rel=2e-5, abs=2e-4)


@given(mixtures(batches), seeds)
def test_log_prob_is_finite_on_the_closed_box(mixture: GaussianMixture, seed: int) -> None:
    assert torch.isfinite(mixture.log_prob(in_box(mixture, 5, seed))).all()
    assert torch.isfinite(mixture.log_prob(mixture.mode().unsqueeze(-2))).all()


@given(mixtures(batches), seeds)
def test_responsibilities_are_shares(mixture: GaussianMixture, seed: int) -> None:
    shares = mixture.responsibilities(in_box(mixture, 4, seed))
    assert (shares >= 0).all()
    assert torch.allclose(shares.sum(-1), torch.ones(shares.shape[:-1]), atol=1e-5)
    dead = (mixture.logits < -1e29).unsqueeze(-2).expand(shares.shape)
    assert (shares[dead] == 0).all()


@given(mixtures(), st.floats(-50, 50))
def test_only_differences_of_the_logits_matter(mixture: GaussianMixture, shift: float) -> None:
    moved = GaussianMixture(mixture.logits + shift, mixture.mean, mixture.log_std)
    actions = in_box(mixture, 3, 0)
    assert torch.allclose(moved.log_prob(actions), mixture.log_prob(actions), rtol=1e-4, atol=1e-3)


@given(mixtures(), st.randoms(use_true_random=False))
def test_the_order_of_the_components_does_not_matter(
    mixture: GaussianMixture, random: object
) -> None:
    count = mixture.logits.shape[-1]
    order = list(range(count))
    random.shuffle(order)  # type: ignore[attr-defined]
    turned = GaussianMixture(
        mixture.logits[..., order], mixture.mean[..., order, :], mixture.log_std[..., order, :]
    )
    actions = in_box(mixture, 3, 0)
    assert torch.allclose(turned.log_prob(actions), mixture.log_prob(actions), rtol=1e-5, atol=1e-4)


@given(mixtures(), seeds)
def test_a_batch_is_its_rows(mixture: GaussianMixture, seed: int) -> None:
    actions = in_box(mixture, 3, seed)
    together = mixture.log_prob(actions)
    for place in reference.indices(*mixture.logits.shape[:-1]):
        row = GaussianMixture(mixture.logits[place], mixture.mean[place], mixture.log_std[place])
        assert torch.allclose(row.log_prob(actions[place]), together[place], rtol=1e-6, atol=1e-5)
        assert torch.equal(row.order(), mixture.order()[place])
        assert torch.equal(row.mode(), mixture.mode()[place])


@given(mixtures(components=st.integers(1, 3), actions=st.integers(1, 2), batch=st.just(())))
@settings(max_examples=25)
def test_the_density_integrates_to_one(mixture: GaussianMixture) -> None:
    """By Gauss-Legendre panels around every component, in one and two dimensions."""
    wide = GaussianMixture(*(x.double() for x in (mixture.logits, mixture.mean, mixture.log_std)))
    std = wide.log_std.exp()
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(10))
    axes = []
    for d in range(wide.mean.shape[-1]):
        # Panels of the width of each component's own std meet its density however narrow it is.
        steps = torch.linspace(-9, 9, 19, dtype=torch.float64)
        edges = (wide.mean[:, d, None] + std[:, d, None] * steps).flatten().sort().values
        half = edges.diff().unsqueeze(-1) / 2
        middle = (edges[1:] + edges[:-1]).unsqueeze(-1) / 2
        axes.append(((middle + half * nodes).flatten(), (half * weights).flatten()))
    points = torch.cartesian_prod(*(x for x, _ in axes)).reshape(-1, len(axes))
    measure = torch.cartesian_prod(*(w for _, w in axes)).reshape(-1, len(axes)).prod(-1)
    total = float((wide.log_prob(points).exp() * measure).sum())
    assert total == pytest.approx(1, abs=1e-6)


def test_samples_follow_the_density() -> None:
    """Kolmogorov-Smirnov at level 1e-6: of a million right samplers it would refuse one.

    The seed is fixed, so that it either always passes or never. With 20 000 draws, a distribution
    function that is off by 0.02 anywhere is refused.
    """
    drawn = MIXTURE.sample(20_000, torch.Generator().manual_seed(0))[:, 0].double().numpy()
    found = stats.kstest(drawn, lambda x: distribution_function(MIXTURE, x))
    assert found.pvalue > 1e-6
    shifted = stats.kstest(drawn + 0.05, lambda x: distribution_function(MIXTURE, x))
    assert shifted.pvalue < 1e-6, "the test has no power"


def test_samples_of_each_dimension_are_independent_within_a_component() -> None:
    one = GaussianMixture(torch.zeros(1), torch.zeros(1, 2), torch.zeros(1, 2))
    drawn = one.sample(20_000, torch.Generator().manual_seed(1)).double().numpy()
    # |r| of independent normals exceeds 5 / sqrt(n) with probability 6e-7.
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 5 / math.sqrt(20_000)


@given(mixtures(batches), st.integers(1, 5), seeds)
@settings(max_examples=30)
def test_samples_have_the_shape_asked_for_and_the_seed_decides(
    mixture: GaussianMixture, count: int, seed: int
) -> None:
    first = mixture.sample(count, torch.Generator().manual_seed(seed))
    again = mixture.sample(count, torch.Generator().manual_seed(seed))
    assert first.shape == (*mixture.logits.shape[:-1], count, mixture.mean.shape[-1])
    assert torch.equal(first, again)
    assert torch.isfinite(first).all()


@given(mixtures())
def test_the_mode_is_the_mean_of_the_heaviest_component(mixture: GaussianMixture) -> None:
    order = mixture.order()
    for place in reference.indices(*mixture.logits.shape[:-1]):
        logits = mixture.logits[place].tolist()
        expected = sorted(range(len(logits)), key=lambda k: -logits[k])  # stable, as `order` is
        assert order[place].tolist() == expected
        assert torch.equal(mixture.mode()[place], mixture.mean[place][expected[0]])
