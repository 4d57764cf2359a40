from __future__ import annotations

import numpy as np
import pytest
import torch

from gem_policy.networks import MixturePolicy
from gem_policy.training.dropout import dropout_generator, forward_with_dropout


def model() -> MixturePolicy:
    return MixturePolicy(3, 2, 4, (16, 8), 0.05, 1.0, torch.Generator().manual_seed(0))


def test_no_rate_is_the_network_itself() -> None:
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    plain, dropped = model()(rows), forward_with_dropout(model(), rows, 0.0, torch.Generator())
    for name in ("logits", "mean", "log_std"):
        torch.testing.assert_close(getattr(dropped, name), getattr(plain, name))


def test_it_is_inverted_dropout_written_out() -> None:
    net, rate = model(), 0.3
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    got = forward_with_dropout(net, rows, rate, dropout_generator(7, 3, 11))
    masks = dropout_generator(7, 3, 11)
    x = rows.double().numpy()
    dropped = 0
    for layer in range(2):
        w, b = (p[layer].detach().double().numpy() for p in (net.weights, net.biases))
        x = np.maximum(x @ w.T + b, 0)
        kept = torch.rand(x.shape, generator=masks).numpy() >= rate
        x, dropped = np.where(kept, x / 0.7, 0.0), dropped + int((~kept).sum())
    x = x @ net.weights[2].detach().double().numpy().T + net.biases[2].detach().double().numpy()
    np.testing.assert_allclose(got.logits.detach().numpy(), x[:, :4], rtol=1e-4, atol=1e-5)
    assert 0.15 < dropped / (5 * 24) < 0.45


def test_masks_are_a_function_of_seed_phase_and_update() -> None:
    def first(*key: int) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=dropout_generator(*key)).tolist())

    keys = [(s, p, u) for s in (0, 1, 2**24 - 1) for p in (0, 3) for u in (0, 1, 512)]
    assert len({first(*key) for key in keys}) == len(keys)
    assert first(1, 3, 5) == first(1, 3, 5)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_what_is_kept_makes_up_for_what_is_dropped(rate: float) -> None:
    """One hidden layer: the logits are linear in it, so their mean over masks is the network's."""
    net = MixturePolicy(3, 2, 4, (16,), 0.05, 1.0, torch.Generator().manual_seed(0))
    row = torch.randn(1, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        many = forward_with_dropout(net, row.expand(20_000, 3), rate, dropout_generator(0, 0, 0))
    torch.testing.assert_close(many.logits.mean(0), net(row).logits[0].detach(), atol=0.02, rtol=0)
    assert float(many.logits.std(0).min()) > 0.01
