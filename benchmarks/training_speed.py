"""Updates/s of the trainer, by phase and in full, beside d3rlpy's IQL and the matrix rate.

    python benchmarks/training_speed.py [--iql-python PYTHON] [--json FILE]

Random transitions in memory with the sizes of Hopper (11 observations, 3 actions) and PointMaze
(8, 2); E = 4 critics, K = 5 components, 256x256, batches of 256, drawn as the trainer draws them.
One full update is one of every phase: behavior, values, critics, actor. IQL's update is of critics
(2), value and actor (1 Gaussian), so ours does more of everything. PYTHON is the interpreter of
`benchmarks/iql/requirements.txt`'s environment; without it the IQL columns stay empty.

Everything takes turns: a round is a short stretch of every phase, a matrix product and IQL's
stretch, and the figures are medians over rounds with their extremes. On a machine that is busy with
other things look at updates per second of processor time, which is given beside, at one thread.

FLOPs are those of the matrix products of linear layers, two per multiply-add: forward; gradient of
the weights, as many again; gradient of the inputs, as many again but for the first layer, whose
inputs are data. Networks that are only evaluated (slow copies, bootstrapped values) count once.
Activations, normalization, losses, Adam and sampling count nothing, though they take time: the
share of the matrix rate is a lower bound of how busy the update keeps the arithmetic units. That
rate is float32's also beside updates whose hidden layers are bfloat16, which may exceed it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from gem_policy.config import NetworkConfig
from gem_policy.evaluate import machine
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Replay, Sampler
from gem_policy.training.trainer import PHASES, start_learner
from gem_policy.training.transitions import Transitions

SIZES = {"Hopper": (11, 3), "PointMaze": (8, 2)}
# What the values are expectiles of, whether the critics look ahead, the hidden layers' precision,
# whether `torch.compile` makes the updates' code.
VARIANTS = {
    "critics that look ahead": ("data", True, "float32", False),
    "critics that look ahead, compiled": ("data", True, "float32", True),
    "critics that look ahead, bfloat16": ("data", True, "bfloat16", False),
    "critics of state and action": ("data", False, "float32", False),
    "critics of state and action, compiled": ("data", False, "float32", True),
    "values of critics, as IQL's": ("critics", False, "float32", False),
}
IQL_SCRIPT = Path(__file__).resolve().parent / "iql" / "train.py"
EPISODE = 1000
Matmul = dict[str, dict[str, float]]


def random_data(observations: int, actions: int, episodes: int = 100) -> Dataset:
    """Random transitions as a dataset that no file holds."""
    generator = torch.Generator().manual_seed(0)
    steps = episodes * EPISODE
    cut = torch.zeros(steps, dtype=torch.bool)
    cut[EPISODE - 1 :: EPISODE] = True
    transitions = Transitions(
        observations=torch.randn(steps + episodes, observations, generator=generator),
        actions=torch.rand(steps, actions, generator=generator) * 2 - 1,
        rewards=torch.randn(steps, generator=generator),
        terminated=torch.zeros(steps, dtype=torch.bool),
        truncated=cut,
        episode=torch.arange(episodes).repeat_interleave(EPISODE),
    )
    return Dataset(
        id="random",
        transitions=transitions,
        numbers=torch.arange(episodes),
        observation_space=gym.spaces.Box(-np.inf, np.inf, (observations,), np.float32),
        action_space=gym.spaces.Box(-1, 1, (actions,), np.float32),
        env_spec=None,
        eval_env_spec=None,
        ref_min=None,
        ref_max=None,
        description="",
        recipe={},
        clipped_actions=0,
        metadata={},
    )


class Stretch:
    """The updates of one phase, as the trainer does them, a stretch at a time."""

    def __init__(
        self, phase: str, net: NetworkConfig, config: TrainConfig, replay: Replay, compiled: bool
    ) -> None:
        number = list(PHASES).index(phase)
        self.learner = start_learner(phase, net, config, torch.device("cpu"))
        if compiled:
            self.learner.make_compiled()
        self.sampler = Sampler(len(replay), config.batch_size, config.seed, number)
        self.replay = replay

    def __call__(self, updates: int) -> tuple[float, float]:
        """Seconds, and seconds of processor time, of one update: the mean over ``updates``."""
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(updates):
            chosen = self.sampler(self.learner.step)
            self.learner.update(self.replay.batch(chosen, self.learner.reads), told=False)
        elapsed = time.perf_counter() - start, time.process_time() - cpu
        return elapsed[0] / updates, elapsed[1] / updates


def prepared(observations: int, actions: int, variant: str) -> dict[str, Stretch]:
    """All phases on random transitions, with random targets for critics and actor."""
    source, lookahead, precision, compiled = VARIANTS[variant]
    config = TrainConfig(value_source=source, precision=precision)
    net = NetworkConfig(observations, actions, critic_lookahead=lookahead)
    replay = prepare(random_data(observations, actions), config, torch.device("cpu")).training
    generator = torch.Generator().manual_seed(1)
    replay = replace(
        replay,
        advantages=torch.randn(len(replay), net.critics, generator=generator),
        weights=torch.rand(len(replay), generator=generator),
    )
    return {phase: Stretch(phase, net, config, replay, compiled) for phase in PHASES}


def products(count: int = 10, size: int = 1024) -> tuple[float, float]:
    """GFLOP/s of float32 matrix products, by the clock and by processor time."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    out = torch.mm(a, b)
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        torch.mm(a, b, out=out)
    elapsed = time.perf_counter() - start, time.process_time() - cpu
    work = 2 * size**3 * count / 1e9
    return work / elapsed[0], work / elapsed[1]


def layers_flops(inputs: int, outputs: int, batch: int, learned: bool, width: int = 256) -> int:
    """FLOPs of the products of one network of two hidden layers; see this module's first lines."""
    widths = [(inputs, width), (width, width), (width, outputs)]
    forward = sum(2 * batch * i * o for i, o in widths)
    return forward + learned * (2 * forward - 2 * batch * inputs * width)


def gem_flops(observations: int, actions: int, variant: str) -> dict[str, int]:
    """FLOPs of one update of every phase."""
    source, lookahead, _, _ = VARIANTS[variant]
    net, batch = NetworkConfig(observations, actions), TrainConfig().batch_size
    both = observations + actions
    mixture = layers_flops(observations, net.actor_components * (1 + 2 * actions), batch, True)
    value = layers_flops(observations, 1, batch, True)
    slow = layers_flops(observations, 1, batch, False)
    critic = layers_flops(both, 1, batch, True)
    step = layers_flops(both, observations + 2, batch, True, net.step_hidden[0])
    helper = critic if source == "critics" else 0
    return {
        "behavior": mixture,
        "value": net.critics * (value + slow + helper),
        "critic": net.critics * (step if lookahead else critic),
        "actor": mixture,
    }


def iql_flops(observations: int, actions: int) -> int:
    """FLOPs of one update of d3rlpy's IQL.

    Learned: two critics, a value, an actor. Evaluated besides: the slow copies of both critics,
    for the value's loss and again for the actor's weights; the value, of the next state and again
    for the weights.
    """
    batch = TrainConfig().batch_size
    critic = 2 * layers_flops(observations + actions, 1, batch, True)
    slow = 2 * layers_flops(observations + actions, 1, batch, False)
    value = layers_flops(observations, 1, batch, True)
    evaluated = layers_flops(observations, 1, batch, False)
    actor = layers_flops(observations, actions, batch, True)
    return critic + 2 * slow + value + 2 * evaluated + actor


def iql_round(python: str, threads: list[int], updates: int) -> list[dict[str, Any]]:
    """One stretch of IQL for each size and number of threads, in its own interpreter."""
    sizes = [f"{o},{a}" for o, a in SIZES.values()]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "iql.json"
        command = [python, str(IQL_SCRIPT), "--speed-only", "--json", str(file)]
        command += ["--sizes", *sizes, "--threads", *map(str, threads)]
        command += ["--measured", str(updates), "--episodes", "20"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{python} could not measure IQL:\n{done.stderr[-2000:]}")
        rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return rows


def spread(values: list[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": float(np.median(values)), "low": min(values), "high": max(values)}


def describe(times: list[tuple[float, float]], flops: int, matmul: Matmul) -> dict[str, Any]:
    """Rates of one kind of update, and the share of the matrix rate of the same clock."""
    out: dict[str, Any] = {"gflop_per_update": flops / 1e9}
    for place, unit in enumerate(("second", "cpu_second")):
        rate = spread([1 / pair[place] for pair in times])
        share = flops * rate["median"] / 1e9 / matmul[unit]["median"]
        out |= {f"updates_per_{unit}": rate, f"share_of_matmul_by_{unit}": share}
    return out


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds, and the figures from them."""
    cases = [(name, variant) for name in SIZES for variant in VARIANTS]
    runs = {case: prepared(*SIZES[case[0]], case[1]) for case in cases}
    times: dict[Any, list[tuple[float, float]]] = {}
    rates: dict[int, list[tuple[float, float]]] = {threads: [] for threads in options.threads}
    for number in range(options.rounds + 1):  # the first one warms caches and does not count
        for threads in options.threads:
            torch.set_num_threads(threads)
            for case, stretches in runs.items():
                for phase, stretch in stretches.items():
                    found = stretch(options.updates)
                    times.setdefault((threads, case, phase), []).append(found)
            rates[threads].append(products())
        if options.iql_python:
            for row in iql_round(options.iql_python, options.threads, options.updates):
                key = (row["threads"], (row["observations"], row["actions"]))
                for kind in ("", "_without_sampling"):
                    found = tuple(1 / row[f"updates_per_{x}second{kind}"] for x in ("", "cpu_"))
                    times.setdefault((*key, f"iql{kind}"), []).append(found)  # type: ignore[arg-type]
        print(f"round {number} of {options.rounds}, load {os.getloadavg()[0]:.1f}", flush=True)
    times = {key: found[1:] for key, found in times.items()}
    matmul: dict[int, Matmul] = {
        threads: {
            unit: spread([pair[place] for pair in found[1:]])
            for place, unit in enumerate(("second", "cpu_second"))
        }
        for threads, found in rates.items()
    }

    rows = []
    for threads in options.threads:
        for name, variant in cases:
            size = SIZES[name]
            flops = gem_flops(*size, variant)
            row: dict[str, Any] = {"task": name, "observations": size[0], "actions": size[1]}
            row |= {"threads": threads, "variant": variant, "phases": {}}
            for phase in PHASES:
                found = times[threads, (name, variant), phase]
                row["phases"][phase] = describe(found, flops[phase], matmul[threads])
            full = np.sum([times[threads, (name, variant), phase] for phase in PHASES], axis=0)
            total = sum(flops.values())
            row["full"] = describe(full.tolist(), total, matmul[threads])
            for kind in ("", "_without_sampling"):
                if (threads, size, f"iql{kind}") not in times:
                    continue
                iql = describe(
                    times[threads, size, f"iql{kind}"], iql_flops(*size), matmul[threads]
                )
                row[f"iql{kind}"] = iql
                for unit in ("second", "cpu_second"):
                    ours = row["full"][f"updates_per_{unit}"]["median"]
                    other = iql[f"updates_per_{unit}"]["median"]
                    row[f"full_per_iql{kind}_by_{unit}"] = ours / other
            rows.append(row)
    return {"matmul_gflops": matmul, "rows": rows}


def show(document: dict[str, Any]) -> None:
    """Print what matters of it."""
    for row in document["rows"]:
        full = row["full"]
        rate = full["updates_per_second"]
        print(
            f"{row['task']:10} {row['threads']} thread(s), {row['variant']}: "
            f"{rate['median']:6.1f} full updates/s [{rate['low']:.1f}, {rate['high']:.1f}], "
            f"{full['updates_per_cpu_second']['median']:6.1f} per CPU second; "
            f"{full['gflop_per_update']:.2f} GFLOP each, {full['share_of_matmul_by_second']:.0%} "
            f"of matmul ({full['share_of_matmul_by_cpu_second']:.0%} by CPU time)"
        )
        phases = {p: r["updates_per_second"]["median"] for p, r in row["phases"].items()}
        print("    " + ", ".join(f"{phase} {value:.0f}/s" for phase, value in phases.items()))
        if "iql" in row:
            rate = row["iql"]["updates_per_second"]
            print(
                f"    d3rlpy IQL {rate['median']:.1f}/s [{rate['low']:.1f}, {rate['high']:.1f}]: "
                f"ours {row['full_per_iql_by_second']:.2f} x, "
                f"{row['full_per_iql_by_cpu_second']:.2f} x by CPU time; "
                f"{row['full_per_iql_without_sampling_by_second']:.2f} x of IQL without its "
                "sampling"
            )


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=50, help="updates of one stretch")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--iql-python", help="interpreter that has d3rlpy")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load = [round(n, 2) for n in os.getloadavg()]
    document = {
        "machine": machine(),
        "load_before": load,
        "rounds": options.rounds,
        "updates_per_stretch": options.updates,
        "batch_size": TrainConfig().batch_size,
        **measure(options),
    }
    document["load_after"] = [round(n, 2) for n in os.getloadavg()]
    show(document)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
