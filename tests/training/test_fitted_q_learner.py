from __future__ import annotations

import numpy as np
import pytest
import torch

from gem_policy.errors import ConfigError
from gem_policy.networks import CriticEnsemble
from gem_policy.training.fitted_q_learner import FittedQConfig, FittedQLearner, _returns_to_go


def test_each_member_is_the_critic_ensembles_own_evaluation() -> None:
    generator = torch.Generator().manual_seed(0)
    critics = CriticEnsemble(4, 3, 2, (8, 8), True, generator=generator)
    learner = FittedQLearner(
        critics, 2, FittedQConfig(), 0.9, center=1.5, scale=2.0, bounds=(-9, 9)
    )
    rows = torch.randn(5, 3, generator=generator)
    actions = torch.randn(2, 5, 2, generator=generator)
    found = learner.value(rows, actions)
    every = critics(rows, actions.transpose(0, 1))  # members, rows, selections
    for member in range(4):
        expected = 2.0 * every[member, :, member // 2] + 1.5
        torch.testing.assert_close(found[member], expected)


def test_returns_to_go_are_those_summed_by_hand() -> None:
    rewards, continues = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 0.0, 1.0, 1.0])
    episode = np.array([0, 0, 0, 1])
    found = _returns_to_go(rewards, continues, episode, 0.5)
    assert found.tolist() == [1 + 0.5 * 2, 2, 3, 4]


def test_settings_out_of_range_are_named() -> None:
    for wrong in ({"updates": 0}, {"target_rate": 0.0}, {"hidden": ()}, {"members": 0}):
        with pytest.raises(ConfigError, match=f"`{next(iter(wrong))}` must be"):
            FittedQConfig(**wrong)  # type: ignore[arg-type]
