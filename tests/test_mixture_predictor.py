"""The baselines of every table: mode and samples of a policy's mixtures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import tiny_policy

from gem_policy.errors import ConfigError
from gem_policy.mixture_predictor import MixturePredictor

POLICY = tiny_policy()


@pytest.mark.parametrize("source", ["actor", "behavior"])
def test_a_mixture_predictor_gives_mode_and_samples_of_its_mixture(source: str) -> None:
    player = MixturePredictor(POLICY, source)
    rows = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    mixture = POLICY.mixture(rows) if source == "actor" else POLICY.behavior_mixture(rows)
    mode, _ = player.predict(rows.numpy(), deterministic=True)
    np.testing.assert_allclose(mode, POLICY.scaler.invert(mixture.mode()), atol=1e-5)
    many = np.repeat(rows[:1].numpy(), 4000, axis=0)
    drawn = POLICY.scaler.apply(torch.from_numpy(player.predict(many)[0]))
    weights = torch.softmax(mixture.logits[0], -1)
    clipped = mixture.sample(200_000, torch.Generator().manual_seed(0))[0].clamp(-1, 1)
    assert weights.shape[0] > 1
    # Five standard errors of a mean of 4000: a right sampler exceeds them once in a million.
    error = 5 * clipped.std(0) / 4000**0.5
    assert ((drawn.mean(0) - clipped.mean(0)).abs() < error + 0.01).all()


def test_a_mixture_predictor_of_nothing_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="'behavior' or 'actor', got 'critic'"):
        MixturePredictor(POLICY, "critic")
