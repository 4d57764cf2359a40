"""What a CUDA device does: the trainer's updates/s, and the time of decisions.

    python benchmarks/gpu.py [--json FILE] [--parts training decisions]

FILE keeps the parts that are not measured again.

Training: random transitions of Hopper's sizes (11 observations, 3 actions) on the device, E = 4
critics, K = 5 components, 256x256, batches of 256; one full update is one of every phase: behavior,
values, critics, actor. As graphs and call by call (`--no-cuda-graph`), one seed and eight in one
run, in the precisions of `TrainConfig`, and in TensorFloat-32
(``torch.set_float32_matmul_precision("high")``).

Decisions: networks with random weights. `predict` of one observation, numpy in to numpy out, N =
1024 and E = 10; `decide` of 4096 states on the device, N = 64 and E = 10, beside the rate of a
large matrix product at the same precision. FLOPs are those of linear layers, as in
`training_speed.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latency import OBSERVATIONS, multiplications, random_policy
from training_speed import gem_flops, random_data, spread

from gem_policy.evaluate import machine
from gem_policy.training.config import TrainConfig
from gem_policy.training.cuda_graph import updates_of
from gem_policy.training.learners import Learner
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Sampler
from gem_policy.training.shared_replay import SharedSampler, share
from gem_policy.training.stacked import StackedLearner
from gem_policy.training.trainer import PHASES, network_for, start_learner

SIZES = (11, 3)
CUDA = torch.device("cuda")
PRECISIONS = ("float32", "tf32", "bfloat16")
LOOKAHEAD = {False: "critics of state and action", True: "critics that look ahead"}


@contextmanager
def matrix_precision(name: str) -> Any:
    """TensorFloat-32 in float32 products, where that is asked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def seconds(work: Callable[[], Any], count: int, repeats: int = 5) -> list[float]:
    """Of one call, for so many calls at once, the device waited for; several times."""
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            work()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - start) / count)
    return found


def matmul_rates(size: int = 8192) -> dict[str, float]:
    """TFLOP/s of a large product in each precision, on random numbers."""
    rates = {}
    for name in PRECISIONS:
        dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
        a, b = (torch.randn(size, size, device=CUDA).to(dtype) for _ in range(2))
        with matrix_precision(name):
            seconds(lambda a=a, b=b: a @ b, 2, 1)  # type: ignore[misc]
            best = min(seconds(lambda a=a, b=b: a @ b, 3, 3))  # type: ignore[misc]
        rates[name] = 2 * size**3 / best / 1e12
    return rates


def phases(seeds: int, precision: str, lookahead: bool, graph: bool) -> dict[str, Any]:
    """The next update of every phase, as the trainer makes it, without metrics."""
    lower = precision if precision == "bfloat16" else "float32"
    configs = [TrainConfig(seed=seed, precision=lower) for seed in range(seeds)]
    dataset = random_data(*SIZES)
    net = network_for(dataset, {"critic_lookahead": lookahead})
    one, many = prepare(dataset, configs[0], CUDA).training, share(dataset, configs, CUDA)
    rows = len(one) if seeds == 1 else len(many.numbers)
    advantages = torch.randn(rows, net.critics, device=CUDA)
    weights = torch.rand(rows, device=CUDA)
    updates = {}
    for number, phase in enumerate(PHASES):
        single = [start_learner(phase, net, config, CUDA) for config in configs]
        if seeds == 1:
            learner: Learner = single[0]
            data: Any = replace(one, advantages=advantages, weights=weights)
            sampler: Any = Sampler(rows, configs[0].batch_size, 0, number, CUDA)
        else:
            learner = StackedLearner(single, range(seeds))
            data = replace(many, advantages=advantages, weights=weights)
            sampler = SharedSampler(data, configs, number)
        update = updates_of(learner, data, sampler, graph)
        updates[phase] = lambda of=update: of(False)
    return updates


def training(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for every case: updates/s of each phase, in full, and of all seeds together."""
    rows = []
    for lookahead in LOOKAHEAD:
        for precision in PRECISIONS:
            for seeds in (1, 8):
                for graph in (True, False):
                    if not graph and (precision == "tf32" or lookahead):
                        continue
                    rows.append(case(seeds, precision, lookahead, graph, options.updates))
                    show(rows[-1])
    return rows


def case(seeds: int, precision: str, lookahead: bool, graph: bool, updates: int) -> dict[str, Any]:
    """One row of `training`."""
    times = {}
    with matrix_precision(precision):
        for phase, update in phases(seeds, precision, lookahead, graph).items():
            seconds(update, 5, 1)  # warms up, and records
            times[phase] = seconds(update, updates if graph else max(updates // 5, 1))
    full = np.sum(list(times.values()), axis=0)
    variant = LOOKAHEAD[lookahead]
    work = seeds * sum(gem_flops(*SIZES, variant).values())
    return {
        "variant": variant,
        "precision": precision,
        "seeds": seeds,
        "cuda_graph": graph,
        "phases": {phase: spread([1 / t for t in found]) for phase, found in times.items()},
        "full_updates_per_second": spread([1 / t for t in full]),
        "full_updates_per_second_of_all_seeds": spread([seeds / t for t in full]),
        "tflops": work / float(np.median(full)) / 1e12,
    }


def show(row: dict[str, Any]) -> None:
    """Print a row of training."""
    each = ", ".join(f"{p} {r['median']:.0f}" for p, r in row["phases"].items())
    print(
        f"{row['variant']:28} {row['precision']:8} {row['seeds']} seed(s) "
        f"{'graph' if row['cuda_graph'] else 'calls'}: "
        f"{row['full_updates_per_second']['median']:7.0f} full updates/s, of all seeds "
        f"{row['full_updates_per_second_of_all_seeds']['median']:7.0f} ({each})",
        flush=True,
    )


def decisions(rates: dict[str, float]) -> dict[str, Any]:
    """Latency of one decision, throughput of many."""
    policy = random_policy(10, device=CUDA)
    policy.selection = policy.selection.replace(candidates=1024)
    observation = np.random.default_rng(0).normal(size=OBSERVATIONS)
    found: dict[str, Any] = {}
    for name, precision, graph, compiled in (
        ("calls", "float32", False, False),
        ("graph", "float32", True, False),
        ("graph, compiled", "float32", True, True),
        ("graph, compiled, tf32", "tf32", True, True),
    ):
        policy.compiled, policy.cuda_graph = compiled, graph
        with matrix_precision(precision):
            times = [
                seconds(lambda: policy.predict(observation, deterministic=True), 1, 1)[0] * 1e6
                for _ in range(2000)
            ][500:]
        median, high = (float(x) for x in np.percentile(times, [50, 99]))
        found[f"predict_n1024_e10, {name}"] = {"median_us": median, "p99_us": high}
        print(f"predict N=1024 E=10, {name}: median {median:.0f} us, p99 {high:.0f} us", flush=True)
    policy.cuda_graph = policy.compiled = False
    policy.selection = policy.selection.replace(candidates=64)
    states = torch.randn(4096, OBSERVATIONS, device=CUDA)
    work = 2 * multiplications(10, 64) * len(states) / 1e12
    for name, compiled in itertools.product(("float32", "tf32"), (False, True)):
        policy.compiled = compiled
        with matrix_precision(name):
            seconds(lambda: policy.decide(states), 2, 1)
            median = float(np.median(seconds(lambda: policy.decide(states), 3)))
        share = work / median / rates[name]
        row = {"ms": median * 1e3, "tflops": work / median, "share_of_matmul": share}
        label = f"{name}, compiled" if compiled else name
        found[f"decide_4096_n64_e10_{label}"] = row
        print(
            f"decide 4096 states, N=64, E=10, {label}: {median * 1e3:.2f} ms, "
            f"{work / median:.1f} TFLOP/s, {share:.0%} of matmul",
            flush=True,
        )
    return found


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=200, help="of a phase, timed at once")
    parser.add_argument("--parts", nargs="+", default=["training", "decisions"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rates = matmul_rates()
    print(", ".join(f"{name} {rate:.0f} TFLOP/s" for name, rate in rates.items()), flush=True)
    document: dict[str, Any] = {}
    if options.json and options.json.exists():
        document = json.loads(options.json.read_text())
    document |= {"machine": machine(), "matmul_tflops": rates}
    document["sizes"] = {"observations": SIZES[0], "actions": SIZES[1], "batch_size": 256}
    if "training" in options.parts:
        document["training"] = training(options)
    if "decisions" in options.parts:
        document["decisions"] = decisions(rates)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
