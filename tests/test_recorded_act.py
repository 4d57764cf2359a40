"""Recorded decisions: the same as ordinary ones, for every batch size and settings.

On a CPU the work itself is done again, on the very tensors that it met: what a graph shares with
the ordinary decision, and what it does not, is tested where there is CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fakes import ACTIONS, GOAL, sample, tiny_checkpoint
from torch import Tensor

from gem_policy import cuda_graph
from gem_policy.cuda_graph import KEPT, RecordedAct
from gem_policy.errors import ConfigError
from gem_policy.policy import GEMPolicy

CPU = torch.device("cpu")
SELECTIONS: list[dict[str, Any]] = [
    {"candidates": 1},
    {"candidates": 7},
    {"candidates": 32, "bound": "lower", "kappa": 1.0, "support_weight": 0.0},
    {"candidates": 32, "bound": "paired", "value_scale": "raw", "all_modes": True},
    {"candidates": 16, "value_knee": 1.0, "proposal_scale": 2.0},
    {"candidates": 20, "gain_kappa": 0.0, "least_gain": 0.5, "gain_per_nat": 0.2},
    {"candidates": 20, "gain_kappa": 0.0, "deciding_candidates": 5},
    {"candidates": 20, "gain_kappa": None},
]


def again_and_again(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    def again() -> None:
        work()

    return again, work()


def made(device: torch.device = CPU, **network: Any) -> GEMPolicy:
    return GEMPolicy(tiny_checkpoint(GOAL, network=network), device)


def observations(policy: GEMPolicy, count: int, seed: int) -> Any:
    return sample(policy.observation_space, np.random.default_rng(seed), (count,))


def compare(plain: GEMPolicy, recorded: GEMPolicy) -> None:
    """Every setting and batch size, each met twice with other observations, in turns."""
    for turn in range(2):
        for settings in SELECTIONS:
            for policy in (plain, recorded):
                policy.selection = policy.selection.replace(**settings)
            for count in (1, 3):
                given = observations(plain, count, 10 * turn + count)
                expected, _ = plain.predict(given, deterministic=True)
                found, _ = recorded.predict(given, deterministic=True)
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
                assert found.dtype == expected.dtype and found.shape == (count, *ACTIONS.shape)
    first, _ = recorded.predict(observations(plain, 1, 1), deterministic=True)
    kept = first.copy()
    recorded.predict(observations(plain, 1, 2), deterministic=True)
    np.testing.assert_array_equal(first, kept)  # an answer is not overwritten by the next


def test_recorded_decisions_are_the_ordinary_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, recorded = made(), made()
    recorded._recorded = RecordedAct(recorded._best, CPU, again_and_again)
    plain.row_by_row = False
    compare(plain, recorded)


def test_few_recordings_are_kept() -> None:
    calls: list[int] = []

    def record(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        calls.append(1)
        return again_and_again(work)

    act = RecordedAct(lambda rows: rows * 2, CPU, record)
    for count in [*range(1, KEPT + 2), 2]:
        assert torch.equal(act(torch.ones(count, 3), None), torch.full((count, 3), 2.0))
    assert len(calls) == KEPT + 1, "the second oldest is still there"
    act(torch.ones(1, 3), None)
    assert len(calls) == KEPT + 2, "the oldest is not"


def test_graphs_of_decisions_need_cuda() -> None:
    policy = made()
    with pytest.raises(ConfigError, match="need the current CUDA device, this policy is on cpu"):
        policy.cuda_graph = True
    assert policy.cuda_graph is False
    policy.cuda_graph = False


@pytest.mark.cuda
@pytest.mark.parametrize("lookahead", [False, True])
def test_decisions_as_graphs_are_the_ordinary_ones(lookahead: bool) -> None:
    cuda = torch.device("cuda")
    plain, recorded = (made(cuda, critic_lookahead=lookahead) for _ in range(2))
    recorded.cuda_graph = True
    compare(plain, recorded)
    assert cuda_graph.KEPT >= 2 * len(SELECTIONS)
