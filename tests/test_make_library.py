"""What libraries are made of: the operations of ordinary decisions, and nothing of this process."""

from __future__ import annotations

import pytest
import torch
from fakes import GOAL, tiny_checkpoint

from gem_policy.ahead_of_time import tensors_of
from gem_policy.make_library import exported
from gem_policy.policy import GEMPolicy

# Of torch itself, when its compiler is imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
ALL_RULES = {
    "candidates": 21,
    "all_modes": True,
    "least_gain": 0.5,
    "gain_per_nat": 0.2,
    "deciding_candidates": 9,
}


@pytest.mark.parametrize(
    ("batch", "lookahead", "settings"),
    [((1,), False, {}), ((1,), True, ALL_RULES), ((), False, ALL_RULES), ((2, 2), True, {})],
)
def test_what_is_exported_is_the_ordinary_decision(
    batch: tuple[int, ...], lookahead: bool, settings: dict[str, object]
) -> None:
    checkpoint = tiny_checkpoint(GOAL, network={"critic_lookahead": lookahead})
    policy = GEMPolicy(checkpoint, torch.device("cpu"))
    policy.selection = policy.selection.replace(**settings)
    rows = torch.randn(*batch, policy.config.network.observation_size)
    program = exported(policy, rows.shape)
    expected = policy.decide(rows)
    for found, wanted in zip(program.module()(rows), tensors_of(expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.compiler.is_compiling()


def test_what_is_exported_takes_float32_whatever_the_default_is() -> None:
    policy = GEMPolicy(tiny_checkpoint(), torch.device("cpu"))
    torch.set_default_dtype(torch.float64)
    try:
        program = exported(policy, torch.Size([1, 3]))
    finally:
        torch.set_default_dtype(torch.float32)
    inputs = [n for n in program.graph.nodes if n.name in program.graph_signature.user_inputs]
    assert [node.meta["val"].dtype for node in inputs] == [torch.float32]
