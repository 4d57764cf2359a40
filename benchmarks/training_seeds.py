"""Updates a second of one seed, and of several seeds trained at once, in total.

    python benchmarks/training_seeds.py [--updates N] [--seeds 2,4,8] [--repeats N] [--json FILE]

Synthetic transitions of PointMaze's sizes (8 observations, 2 actions), E = 4, K = 5, batch 256. One
seed is the learner, replay and sampler of `fit`; several are those of `fit_seeds`. "wide" are the
default networks of 256 x 256, "narrow" ones of 8 x 8, batch 16, whose time is that of dispatching
kernels: what a large GPU spends most of its time on. Every phase counts the same. On the CPU, one
thread is used and its CPU time is counted, so that other work on the machine disturbs less; on a
GPU, which is measured where there is one, the time on the clock. Also: bytes of the transitions.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from gem_policy.evaluate import machine
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.learners import Learner
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Batch, Sampler
from gem_policy.training.shared_replay import SharedSampler, share
from gem_policy.training.stacked import StackedLearner
from gem_policy.training.trainer import PHASES, network_for, start_learner
from gem_policy.training.transitions import Transitions

EPISODES, STEPS = 200, 500
CRITICS = 4
SIZES: dict[str, tuple[int, int]] = {"wide": (256, 256), "narrow": (8, 16)}  # width, batch


def synthetic() -> Dataset:
    """Random transitions in memory."""
    generator = torch.Generator().manual_seed(0)
    steps = EPISODES * STEPS
    ends = torch.arange(steps) % STEPS == STEPS - 1
    return Dataset(
        id="synthetic",
        transitions=Transitions(
            observations=torch.randn(steps + EPISODES, 8, generator=generator),
            actions=torch.rand(steps, 2, generator=generator) * 2 - 1,
            rewards=torch.randn(steps, generator=generator),
            terminated=torch.zeros(steps, dtype=torch.bool),
            truncated=ends,
            episode=torch.arange(steps) // STEPS,
        ),
        numbers=torch.arange(EPISODES),
        observation_space=gym.spaces.Box(-np.inf, np.inf, (8,)),
        action_space=gym.spaces.Box(-1.0, 1.0, (2,)),
        env_spec=None,
        eval_env_spec=None,
        ref_min=None,
        ref_max=None,
        description="",
        recipe={},
        clipped_actions=0,
        metadata={},
    )


def judged(replay: Any) -> Any:
    """With columns of advantages, as in the phase of the critics."""
    count = len(replay.weights)
    return replace(replay, advantages=torch.randn(count, CRITICS, device=replay.weights.device))


def bytes_of(record: Any) -> int:
    """Of all tensors of a dataclass, nested ones too."""
    values = [getattr(record, field.name) for field in fields(record)]
    return sum(v.nbytes if isinstance(v, Tensor) else bytes_of(v) for v in values)


class Case:
    """All phases of a number of seeds, ready to be updated."""

    def __init__(self, dataset: Dataset, seeds: int, width: int, batch: int, device: str) -> None:
        where = torch.device(device)
        self.seeds, self.device = seeds, device
        configs = [TrainConfig(seed=seed, batch_size=batch) for seed in range(seeds)]
        layers = (width, width)
        names = ("actor_hidden", "behavior_hidden", "critic_hidden")
        changes = {"critics": CRITICS, "critic_lookahead": False}
        net = network_for(dataset, {**dict.fromkeys(names, layers), **changes})
        self.learners: dict[str, Learner] = {}
        self.draws: dict[str, Callable[[int], Batch]] = {}
        one = judged(prepare(dataset, configs[0], where).training)
        shared = judged(share(dataset, configs, where))
        self.bytes = bytes_of(one if seeds == 1 else shared)
        for number, name in enumerate(PHASES):
            single = [start_learner(name, net, config, where) for config in configs]
            if seeds == 1:
                sampler = Sampler(len(one), batch, 0, number)
                self.learners[name] = single[0]
                self.draws[name] = lambda step, of=sampler, reads=single[0].reads: one.batch(
                    of(step).to(where), reads
                )
            else:
                many = SharedSampler(shared, configs, number)
                self.learners[name] = StackedLearner(single, range(seeds))
                self.draws[name] = lambda step, of=many, reads=single[0].reads: shared.batch(
                    of(step).to(where), reads
                )

    def seconds(self, phase: str, updates: int) -> float:
        """Of so many updates."""
        learner, draw = self.learners[phase], self.draws[phase]
        if self.device == "cuda":
            torch.cuda.synchronize()
        clock = time.perf_counter if self.device == "cuda" else time.process_time
        start = clock()
        for _ in range(updates):
            learner.update(draw(learner.step), told=False)
        if self.device == "cuda":
            torch.cuda.synchronize()
        return clock() - start


def measure(dataset: Dataset, counts: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """Rates of all numbers of seeds, on all devices, of all sizes."""
    rows: dict[str, Any] = {}
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        for size, (width, batch) in SIZES.items():
            cases = [Case(dataset, count, width, batch, device) for count in counts]
            row = turns(cases, options.updates, options.repeats)
            rows[f"{device}, {size}"] = row
            for count, told in row.items():
                print(
                    f"{device:4} {size:6} {count} seeds: {told['total']:8.1f} updates/s in total, "
                    f"{told['times_one']:.2f} x one (range {told['range'][0]:.2f} to "
                    f"{told['range'][1]:.2f}); "
                    + ", ".join(f"{p} {rate:.1f}" for p, rate in told["phases"].items()),
                    flush=True,
                )
    return rows


def turns(cases: list[Case], updates: int, repeats: int) -> dict[str, Any]:
    """Seconds of every case in turns, as rates; `times_one` is the median over the turns."""
    for case in cases:
        for phase in PHASES:
            case.seconds(phase, 3)
    spent: dict[int, list[dict[str, float]]] = {case.seeds: [] for case in cases}
    for _ in range(repeats):
        for case in cases:
            spent[case.seeds].append({phase: case.seconds(phase, updates) for phase in PHASES})
    alone = [sum(each.values()) for each in spent[1]]
    row = {}
    for case in cases:
        all_phases = [sum(each.values()) for each in spent[case.seeds]]
        ratios = [case.seeds * one / own for one, own in zip(alone, all_phases, strict=True)]
        done = case.seeds * updates
        row[str(case.seeds)] = {
            "total": len(PHASES) * done / float(np.median(all_phases)),
            "times_one": float(np.median(ratios)),
            "range": [min(ratios), max(ratios)],
            "phases": {
                phase: done / float(np.median([each[phase] for each in spent[case.seeds]]))
                for phase in PHASES
            },
            "transitions_bytes": case.bytes,
        }
    return row


def main() -> None:
    """Measure in turns, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=200, help="of every phase, in every turn")
    parser.add_argument("--seeds", default="2,4,8")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = [1, *(int(count) for count in options.seeds.split(","))]
    before = os.getloadavg()[0]
    rows = measure(synthetic(), counts, options)
    if options.json:
        document = {
            "machine": machine(),
            "load": [round(before, 2), round(os.getloadavg()[0], 2)],
            "transitions": EPISODES * STEPS,
            "updates": options.updates,
            "repeats": options.repeats,
            "rows": rows,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
