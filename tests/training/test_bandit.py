"""A problem with a known answer: GEM finds the rare best mode where one Gaussian averages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bandits import PROBLEMS

from gem_policy.policy import GEMPolicy
from gem_policy.training.config import TrainConfig
from gem_policy.training.trainer import PHASES, fit


def test_the_problem_is_what_its_description_says() -> None:
    for size, bandit in PROBLEMS.items():
        contexts, actions, rewards = bandit.data(4000, np.random.default_rng(0))
        modes = bandit.modes(contexts)
        for number, height in enumerate(bandit.heights):
            np.testing.assert_allclose(
                bandit.rewards(contexts, modes[:, number]), height, rtol=0.01
            )
            assert (bandit.places(contexts, modes[:, number]) == number).all()
        shares = np.bincount(bandit.places(contexts, actions) + 1, minlength=4) / len(contexts)
        np.testing.assert_allclose(shares[1:] / shares[1:].sum(), bandit.shares, atol=0.03)
        assert np.abs(rewards - bandit.rewards(contexts, actions)).std() > 0
        for averaged in (modes.mean(1), modes[:, :2].mean(1), modes[:, 1:].mean(1)):
            assert (bandit.places(contexts, averaged) == -1).all()
            assert bandit.rewards(contexts, averaged).max() < 0.2
        # A slow oracle for one row.
        distances = [float(np.sum((actions[0] - m) ** 2)) for m in modes[0]]
        worth = [
            h * np.exp(-d / size / bandit.width**2)
            for h, d in zip(bandit.heights, distances, strict=True)
        ]
        assert np.isclose(bandit.rewards(contexts, actions)[0], max(worth))


# Updates of each phase, and the rates of critics and mixtures: no more than it takes.
TRAININGS: dict[int, dict[str, Any]] = {
    1: {"behavior": 400, "value": 50, "critic": 500, "actor": 400, "rates": (4e-3, 4e-3)},
    2: {"behavior": 600, "value": 50, "critic": 1000, "actor": 600, "rates": (2e-3, 3e-3)},
    8: {"behavior": 1000, "value": 800, "critic": 1500, "actor": 1000, "rates": (2e-3, 3e-3)},
}


# Five components for three modes: that one of them goes unused is no fault here.
@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")
@pytest.mark.parametrize(
    ("dimensions", "precision"),
    [
        (1, "float32"),
        (2, "float32"),
        pytest.param(2, "bfloat16", marks=pytest.mark.slow),
        pytest.param(8, "float32", marks=pytest.mark.slow),
    ],
)
def test_the_rare_best_mode_is_found_where_one_gaussian_averages(
    tmp_path: Path, dimensions: int, precision: str
) -> None:
    bandit = PROBLEMS[dimensions]
    many = dimensions == 8
    name = f"test/bandit-{dimensions}d-{precision}-v0"
    dataset = bandit.dataset(name, episodes=200 if many else 100, seed=0)
    training = TRAININGS[dimensions]
    critic_lr, policy_lr = training["rates"]
    lengths: dict[str, Any] = {f"{phase}_updates": training[phase] for phase in PHASES}
    config = TrainConfig(
        **lengths,
        discount=0.0,
        episode_temperature=None,  # a hundred contexts drawn at random: their return is chance
        critic_lr=critic_lr,
        policy_lr=policy_lr,
        precision=precision,
    )
    sizes = dict.fromkeys(("actor_hidden", "behavior_hidden", "critic_hidden"), (64, 64))
    # In many dimensions the density differs more within a mode than between modes' shares, so
    # support can weigh as much as value.
    advised = {"support_weight": 1.0 if many else 0.5, "bound": "lower", "kappa": 1.0}
    advised["all_modes"] = True
    contexts = bandit.contexts(400, np.random.default_rng(1))
    rows = torch.from_numpy(contexts)
    place = {}
    for name, components, settings in (
        ("gem", 5, {"candidates": 64, **advised}),
        ("single", 1, {"candidates": 1}),
    ):
        network = {**sizes, "actor_components": components, "critics": 4 if many else 3}
        network["critic_lookahead"] = False  # nothing follows
        if name == "single":  # its own mean is asked for, no behavior model
            config = replace(config, behavior_updates=1)
        fit(dataset, tmp_path / name, config, network=network)
        policy = GEMPolicy.load(tmp_path / name, device="cpu", **settings)
        place[name] = bandit.places(contexts, policy.decide(rows).action.numpy())
    assert (place["gem"] >= 0).mean() >= 0.99
    assert (place["gem"] == 2).mean() >= 0.99
    assert (place["single"] >= 0).mean() < 0.2
