"""Compiled decisions beside ordinary ones: `python compiled_policies.py DEVICE [eager]`.

A program, because the tests' type checker wraps every function and torch's compiler would look into
the wrapping. With "eager" torch only traces, in one piece or not at all, and compiles nothing.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from fakes import GOAL, sample, tiny_checkpoint

from gem_policy.compiled import Compiled
from gem_policy.policy import GEMPolicy

DEVICE = torch.device(sys.argv[1])
TRACED = sys.argv[2:] == ["eager"]


def policies(lookahead: bool) -> tuple[GEMPolicy, GEMPolicy]:
    """The same policy twice, the second compiled."""
    checkpoint = tiny_checkpoint(GOAL, network={"critic_lookahead": lookahead})
    plain, compiled = (GEMPolicy(checkpoint, DEVICE) for _ in range(2))
    if DEVICE.type == "cuda":
        compiled.cuda_graph = True
    if TRACED:
        compiled._compiled = Compiled(compiled._deterministic, backend="eager", fullgraph=True)
    else:
        compiled.compiled = True
        assert compiled.compiled and compiled.cuda_graph == (DEVICE.type == "cuda")
    return plain, compiled


def compare(plain: GEMPolicy, compiled: GEMPolicy) -> None:
    """Settings in turns, one observation and several, arrays and tensors."""
    rng = np.random.default_rng(0)
    other = {
        "candidates": 20,
        "kappa": 0.5,
        "gain_kappa": 0.0,
        "least_gain": 0.5,
        "gain_per_nat": 0.2,
        "deciding_candidates": 9,
    }
    for turn in range(2):
        for settings in ({"candidates": 7}, {"candidates": 1}, other):
            for policy in (plain, compiled):
                policy.selection = policy.selection.replace(**settings)
            given = sample(plain.observation_space, rng, (1 + turn,))
            expected, _ = plain.predict(given, deterministic=True)
            found, _ = compiled.predict(given, deterministic=True)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        rows = torch.randn(3, plain.config.network.observation_size, device=DEVICE)
        expected_all, found_all = plain.decide(rows), compiled.decide(rows)
        torch.testing.assert_close(found_all.action, expected_all.action, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found_all.scores, expected_all.scores, rtol=1e-3, atol=1e-3)
        drawn = compiled.decide(rows, torch.Generator(DEVICE).manual_seed(turn))
        assert not torch.equal(drawn.candidates.actions, found_all.candidates.actions)


for lookahead in (False, True):
    compare(*policies(lookahead))
print("compiled decisions are the ordinary ones")
