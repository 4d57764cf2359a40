"""Compiled updates beside ordinary ones: `python compiled_trainings.py FOLDER DEVICE [eager]`.

A program, for the reasons of `compiled_policies.py`. With "eager" torch only traces, in one piece
or not at all; without, whole runs are compiled for the device, one of them stopped and resumed.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from tiny_runs import SHORT, TINY, Stop, random_dataset, run, stop_at

from gem_policy.config import NetworkConfig
from gem_policy.errors import TrainingWarning
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Sampler
from gem_policy.training.shared_replay import SharedSampler, share
from gem_policy.training.stacked import StackedLearner
from gem_policy.training.trainer import PHASES, start_learner

FOLDER, DEVICE = Path(sys.argv[1]), sys.argv[2]
CPU = torch.device("cpu")
torch.set_num_threads(1)
warnings.simplefilter("ignore", TrainingWarning)  # a dozen updates know nothing
dataset = random_dataset(FOLDER / "data", [9] * 5)


def close(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def traced(phase: str, changes: dict[str, Any], settings: dict[str, Any], seeds: int) -> None:
    """Some updates by what was traced and by ordinary code: metrics, weights, moments."""
    configs = [replace(SHORT, seed=seed, **settings) for seed in range(seeds)]
    net = NetworkConfig(3, 2, **{**TINY, **changes})
    one, many = prepare(dataset, configs[0], CPU).training, share(dataset, configs, CPU)
    numbers: Any = Sampler(len(one), 16, 0, 0)
    data: Any = one
    if seeds > 1:
        data, numbers = many, SharedSampler(many, configs, 0)
    rows = len(one) if seeds == 1 else len(many.numbers)
    data = replace(data, advantages=torch.randn(rows, net.critics), weights=torch.rand(rows))
    learners = []
    for _ in range(2):
        single = [start_learner(phase, net, config, CPU) for config in configs]
        learners.append(single[0] if seeds == 1 else StackedLearner(single, range(seeds)))
    plain, compiled = learners
    compiled.make_compiled(backend="eager", fullgraph=True)
    if configs[0].precision == "bfloat16":  # a bias is rounded once more
        batch = data.batch(numbers(0), plain.reads)
        found, expected = compiled.evaluate(batch)[0], plain.evaluate(batch)[0]
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    else:
        for step in range(4):
            batch = data.batch(numbers(step), plain.reads)
            close(compiled.update(batch, step % 2 == 0), plain.update(batch, step % 2 == 0))
        close(compiled.tensors(), plain.tensors())


def trace_all() -> None:
    """Every phase and kind of it: more than torch keeps compilations of one function."""
    ahead = {"critic_lookahead": True, "step_hidden": (8,)}
    deep = {name: (8, 8) for name in ("actor_hidden", "behavior_hidden", "critic_hidden")}
    kinds: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        *((phase, {}, {}) for phase in PHASES),
        *((phase, deep, {"precision": "bfloat16"}) for phase in PHASES),
        ("critic", ahead, {}),
        ("value", {"critic_frequencies": 2}, {"value_source": "critics"}),
        ("actor", {}, {"responsibility_floor": 0.05}),
    ]
    for kind in kinds:
        for seeds in (1, 2):
            traced(*kind, seeds)


def run_all() -> None:
    """A compiled run is the ordinary one to rounding; stopped and resumed it is itself, to the bit.

    Read at other times as well. On a GPU compiled updates are recorded as graphs, as by default.
    """
    ordinary = run(dataset, FOLDER / "ordinary", device=DEVICE)
    options: dict[str, Any] = {"compiled": True, "device": DEVICE}
    whole = run(dataset, FOLDER / "whole", **options)
    torch.testing.assert_close(load(whole), load(ordinary), rtol=1e-4, atol=1e-5)
    for update in (3, 15, 40, 50):
        try:
            run(dataset, FOLDER / "again", **options, log_every=3, progress=stop_at(update))
        except Stop:
            continue
        raise RuntimeError("it was not stopped")
    assert run(dataset, FOLDER / "again", **options, log_every=3) == whole


if sys.argv[3:] == ["eager"]:
    trace_all()
else:
    run_all()
print("compiled updates are the ordinary ones")
