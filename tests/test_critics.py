"""Critics that look one step ahead, against loops and where the answer is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import tiny_checkpoint, tiny_policy
from reference import in_waves, member_outputs

from gem_policy import GEMPolicy
from gem_policy.checkpoint import load, save
from gem_policy.config import NetworkConfig
from gem_policy.critics import LookaheadCritics, build_critics
from gem_policy.errors import CheckpointError, ConfigError
from gem_policy.networks import CriticEnsemble

AHEAD = {"critic_lookahead": True, "step_hidden": (6, 5)}


def small(frequencies: int = 0) -> LookaheadCritics:
    """Two members, three observations, two actions, units that are all different."""
    config = NetworkConfig(
        3, 2, critics=2, critic_hidden=(8, 8), critic_frequencies=frequencies, **AHEAD
    )
    critics = build_critics(config, torch.Generator().manual_seed(2))
    assert isinstance(critics, LookaheadCritics)
    with torch.no_grad():
        critics.units.change.copy_(torch.tensor([0.5, 0.0, 2.0]))
        for name, number in {
            "reward_mean": -0.3,
            "reward_std": 1.7,
            "advantage": 0.4,
            "discount": 0.9,
        }.items():
            getattr(critics.units, name).fill_(number)
    return critics.requires_grad_(False)


@pytest.mark.parametrize("frequencies", [0, 3])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_they_are_their_loops(batch: tuple[int, ...], frequencies: int) -> None:
    critics = small(frequencies)
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(*batch, 3, generator=generator)
    actions = torch.rand(*batch, 5, 2, generator=generator) * 2 - 1
    q = critics(observations, actions)
    assert q.shape == (2, *batch, 5)

    def value(member: int, state: list[float]) -> float:
        return member_outputs(critics.values, member, in_waves(state, frequencies))[0]

    for member in range(2):
        for place in np.ndindex(*batch):
            state = observations[place].double().tolist()
            for n in range(5):
                action = actions[(*place, n)].double().tolist()
                *change, reward, logit = member_outputs(critics.step, member, state + action)
                after = [s + c * u for s, c, u in zip(state, change, [0.5, 0, 2], strict=True)]
                goes_on = 1 / (1 + math.exp(-logit))
                expected = 1.7 * reward - 0.3 + 0.9 * goes_on * value(member, after)
                expected = (expected - value(member, state)) / 0.4
                assert float(q[(member, *place, n)]) == pytest.approx(expected, abs=1e-4)


def test_pairs_are_predicted_as_single_candidates_are() -> None:
    critics = small(3)
    observations, actions = torch.randn(4, 3), torch.rand(4, 2)
    pairs = critics.predict_pairs(observations, actions)
    for found, expected, axis in zip(
        pairs, critics.predict(observations, actions.unsqueeze(-2)), (-2, -1, -1), strict=True
    ):
        torch.testing.assert_close(found, expected.squeeze(axis))


def test_they_are_what_a_training_gets_unless_told_otherwise() -> None:
    assert isinstance(build_critics(NetworkConfig(2, 1)), LookaheadCritics)


def test_members_share_nothing() -> None:
    critics = small()
    observations, actions = torch.randn(4, 3), torch.rand(4, 5, 2)
    before = critics(observations, actions)
    with torch.no_grad():
        critics.step.weights[0][1] += 1.0
        critics.values.biases[1][1] += 1.0
    after = critics(observations, actions)
    assert torch.equal(after[0], before[0])
    assert bool((after[1] != before[1]).all())


def test_an_end_is_worth_its_reward_alone() -> None:
    """Where the step is sure that the return ends, the place that it leads to does not matter."""
    critics = small()
    observations, actions = torch.randn(4, 3), torch.rand(4, 5, 2)
    with torch.no_grad():
        critics.step.biases[-1][..., -1] = -50.0
    _, reward, _ = critics.predict(observations, actions)
    expected = (reward * 1.7 - 0.3 - critics.values(observations).unsqueeze(-1)) / 0.4
    torch.testing.assert_close(critics(observations, actions), expected)


def test_the_better_place_wins() -> None:
    """A step that adds the action to the first number, and values that like it to be large."""
    config = NetworkConfig(2, 1, critics=1, critic_hidden=(2,), critic_layer_norm=False, **AHEAD)
    critics = LookaheadCritics(config)
    with torch.no_grad():
        for parameter in critics.parameters():
            parameter.zero_()
        critics.units.change.fill_(1.0)
        critics.units.advantage.fill_(1.0)
        critics.units.discount.fill_(1.0)
        for layer in (0, 1, 2):  # relu(a) - relu(-a) is the action
            place = 2 if layer == 0 else slice(0, 2)
            columns = torch.tensor([1.0, -1.0]) if layer == 0 else torch.eye(2)
            if layer == 2:
                critics.step.weights[2][0, :2, 0] = torch.tensor([1.0, -1.0])
            else:
                critics.step.weights[layer][0, place, :2] = columns
        critics.step.biases[-1][..., -1] = 50.0  # it always goes on
        critics.values.weights[0][0, 0] = torch.tensor([1.0, -1.0])
        critics.values.weights[1][0, :, 0] = torch.tensor([1.0, -1.0])
    actions = torch.tensor([[-1.0], [-0.2], [0.7], [0.1]])
    q = critics(torch.tensor([0.3, 5.0]), actions)
    torch.testing.assert_close(q[0], actions[:, 0])


def test_a_policy_with_them_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    network = {**AHEAD, "critic_frequencies": 2}
    policy = tiny_policy(network=network)
    policy.save(tmp_path / "model.safetensors")
    again = GEMPolicy.load(tmp_path / "model.safetensors", device="cpu")
    assert isinstance(again.critics, LookaheadCritics)
    observations = np.stack([policy.observation_space.sample() for _ in range(7)])
    actions, _ = again.predict(observations, deterministic=True)
    np.testing.assert_array_equal(actions, policy.predict(observations, deterministic=True)[0])
    for row, action in zip(observations, actions, strict=True):
        np.testing.assert_array_equal(again.predict(row, deterministic=True)[0], action)
    assert isinstance(tiny_policy().critics, CriticEnsemble)


def test_a_unit_that_cannot_be_divided_by_is_refused(tmp_path: Path) -> None:
    made = tiny_checkpoint(network=AHEAD)
    made.tensors["critic.units.advantage"].zero_()  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"critic\.units\.advantage: must be positive"):
        save(made, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_nothing_of_theirs_may_be_missing(tmp_path: Path) -> None:
    made = tiny_checkpoint(network=AHEAD)
    save(made, tmp_path / "model.safetensors")
    names = set(load(tmp_path / "model.safetensors").tensors)
    assert {"critic.step.weights.0", "critic.values.weights.0", "critic.units.change"} <= names
    del made.tensors["critic.units.discount"]  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match=r"missing: critic\.units\.discount"):
        save(made, tmp_path / "other.safetensors")


def test_a_senseless_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="step_hidden"):
        NetworkConfig(3, 2, step_hidden=())
