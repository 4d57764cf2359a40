"""The ensembles against loops over members, states and candidates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import tiny_policy
from reference import in_waves, member_outputs
from torch.nn import functional as F

from gem_policy import GEMPolicy, networks
from gem_policy.config import NetworkConfig
from gem_policy.errors import ConfigError
from gem_policy.networks import affine, build_action_values, build_values, normalized, waves


def small(frequencies: int, layer_norm: bool = True) -> NetworkConfig:
    """Two members of eight units, three observations, two actions."""
    return NetworkConfig(
        3,
        2,
        critics=2,
        critic_hidden=(8, 8),
        critic_layer_norm=layer_norm,
        critic_frequencies=frequencies,
    )


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("frequencies", [0, 1, 4])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_ensembles_are_their_loops(
    batch: tuple[int, ...], frequencies: int, layer_norm: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    config = small(frequencies, layer_norm)
    critics, values = build_action_values(config, generator), build_values(config, generator)
    observations = torch.randn(*batch, 3, generator=generator)
    actions = torch.rand(*batch, 5, 2, generator=generator) * 2 - 1
    with torch.no_grad():
        q, v = critics(observations, actions), values(observations)
    assert q.shape == (2, *batch, 5) and v.shape == (2, *batch)
    for member in range(2):
        for place in np.ndindex(*batch):
            seen = in_waves(observations[place].double().tolist(), frequencies)
            expected = member_outputs(values, member, seen)[0]
            assert float(v[(member, *place)]) == pytest.approx(expected, abs=1e-5)
            for n in range(5):
                expected = member_outputs(critics, member, seen + actions[(*place, n)].tolist())[0]
                assert float(q[(member, *place, n)]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("frequencies", [0, 2])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_a_pair_is_one_candidate(batch: tuple[int, ...], frequencies: int) -> None:
    critics = build_action_values(small(frequencies), torch.Generator().manual_seed(0))
    observations, actions = torch.randn(*batch, 3), torch.rand(*batch, 2)
    found = critics.of_pairs(observations, actions)
    torch.testing.assert_close(
        found, critics.of_actions(observations, actions.unsqueeze(-2))[..., 0, :]
    )


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("outputs", [1, 2])
def test_linear_layers_are_each_members_product(outputs: int, learned: bool) -> None:
    """One output has code of its own, with gradients and without."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5, 7), (3, 7, outputs), (3, 1, outputs)]
    tensors = [torch.randn(*shape, generator=generator).double() for shape in shapes]

    def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.stack([a @ b + c for a, b, c in zip(x, weight, bias, strict=True)])

    results = []
    for layer in (affine, plain):
        own = [x.clone().requires_grad_(learned) for x in tensors]
        out = layer(*own)
        assert out.shape == (3, 5, outputs)
        slopes = torch.autograd.grad(out.exp().sum(), own) if learned else ()
        results.append((out, *slopes))
    torch.testing.assert_close(*results)
    with pytest.MonkeyPatch.context() as patch:  # many rows, and a single member
        patch.setattr(networks, "LARGE", 1)
        torch.testing.assert_close(affine(*tensors), results[1][0])
        one = [x[:1].clone().requires_grad_(learned) for x in tensors]
        torch.testing.assert_close(affine(*one), results[1][0][:1])
        large = affine(*(x.clone().requires_grad_(learned) for x in tensors))
        torch.testing.assert_close(large, results[1][0])
    # Several seeds are trained under vmap.
    seeds = [torch.stack([x, -x]) for x in tensors]
    both = torch.vmap(affine)(*seeds)
    torch.testing.assert_close(both, torch.stack([plain(*(x[i] for x in seeds)) for i in (0, 1)]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_normalizing_is_torchs_layer_norm(dtype: torch.dtype) -> None:
    x = torch.randn(5, 4, 40, generator=torch.Generator().manual_seed(0)).to(dtype)

    def plain(part: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(part, (40,))

    # Several seeds are trained under vmap.
    for one, other in ((normalized, plain), (torch.vmap(normalized), torch.vmap(plain))):
        results = []
        for layer in (one, other):
            own = x.clone().requires_grad_()
            out = layer(own)
            results.append((out, *torch.autograd.grad(out.square().sum(), own)))
        torch.testing.assert_close(*results)


def test_what_was_normalized_while_deciding_can_be_trained_afterwards() -> None:
    width = 37  # of no other test
    with torch.inference_mode():
        normalized(torch.randn(2, width))
    x = torch.randn(2, width, requires_grad=True)
    slopes = [
        torch.autograd.grad(out.exp().sum(), x)[0]
        for out in (normalized(x), F.layer_norm(x, (width,)))
    ]
    torch.testing.assert_close(*slopes)


def test_without_frequencies_nothing_is_added() -> None:
    x = torch.randn(4, 3)
    assert waves(x, 0) is x
    assert waves(x, 2).shape == (4, 15)


def test_frequencies_tell_close_states_apart() -> None:
    """What they are for: more of them, more change over a short distance."""
    change = []
    for frequencies in (0, 3, 6):
        values = build_values(small(frequencies), torch.Generator().manual_seed(0))
        x = torch.linspace(-1, 1, 401)[:, None].expand(-1, 3)
        with torch.no_grad():
            v = values(x)
        change.append(float((v[:, 1:] - v[:, :-1]).abs().mean() / v.std()))
    assert change[0] < change[1] < change[2]


def test_a_policy_with_frequencies_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    policy = tiny_policy(network={"critic_frequencies": 3})
    policy.save(tmp_path / "model.safetensors")
    again = GEMPolicy.load(tmp_path / "model.safetensors", device="cpu")
    observations = np.stack([policy.observation_space.sample() for _ in range(7)])
    actions, _ = again.predict(observations, deterministic=True)
    np.testing.assert_array_equal(actions, policy.predict(observations, deterministic=True)[0])
    for row, action in zip(observations, actions, strict=True):
        np.testing.assert_array_equal(again.predict(row, deterministic=True)[0], action)
    plain = tiny_policy()
    assert not np.array_equal(plain.predict(observations, deterministic=True)[0], actions)


@pytest.mark.parametrize("value", [-1, 17, True])
def test_a_senseless_number_of_frequencies_is_refused(value: int) -> None:
    with pytest.raises(ConfigError, match="critic_frequencies"):
        NetworkConfig(3, 2, critic_frequencies=value)
