"""Time of one decision: GEMPolicy.predict beside SB3 SAC's, in one process, in turns.

    python benchmarks/latency.py [--json FILE]

Networks have random weights: time does not depend on them. Calls alternate, so that whatever else
the machine does falls on both alike, and so does the product whose rate is the machine's. Libraries
are made anew, in a folder of their own, and the first call is timed with one that is made and with
one that is found there.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from gem_policy.checkpoint import CALIBRATION_POINTS, Checkpoint, PolicyConfig
from gem_policy.config import NetworkConfig, SelectionConfig
from gem_policy.critics import build_critics
from gem_policy.evaluate import machine
from gem_policy.networks import build_actor, build_behavior
from gem_policy.policy import GEMPolicy

OBSERVATIONS, ACTIONS = 11, 3
CPU = torch.device("cpu")
LARGE = ("GEM predict N=256 E=10", "GEM predict N=256 E=10, compiled")
SIZE = 1024
PRODUCT = f"product {SIZE} x {SIZE}"  # whose rate is the machine's


def random_policy(
    members: int, seed: int = 0, device: torch.device = CPU, lookahead: bool = False, **changes: Any
) -> GEMPolicy:
    """A policy with random weights of the standard sizes (256x256, K = 5), or changed ones.

    Its critics are networks of state and action, if not told otherwise.
    """
    network = NetworkConfig(
        OBSERVATIONS, ACTIONS, critics=members, critic_lookahead=lookahead, **changes
    )
    generator = torch.Generator().manual_seed(seed)
    modules = {
        "actor": build_actor(network, generator),
        "behavior": build_behavior(network, generator),
        "critic": build_critics(network, generator),
    }
    tensors = {f"{n}.{k}": v for n, m in modules.items() for k, v in m.state_dict().items()}
    box = spaces.Box(-1, 1, (ACTIONS,), np.float32)
    tensors |= {
        "observation.mean": torch.zeros(OBSERVATIONS),
        "observation.std": torch.ones(OBSERVATIONS),
        "action.low": torch.from_numpy(box.low),
        "action.high": torch.from_numpy(box.high),
        "calibration.log_behavior": torch.linspace(-10, 5, CALIBRATION_POINTS),
    }
    space = spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float64)
    config = PolicyConfig(network, SelectionConfig(), space, box, gain_unit=0.3)
    return GEMPolicy(Checkpoint(config, tensors), device)


def alternate(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Median, p99, p10 and least in microseconds of each call, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for k in range(repeats + 20):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if k >= 20:
                times[name].append((time.perf_counter() - start) * 1e6)
    return {
        name: {
            "median_us": float(np.median(t)),
            "p99_us": float(np.percentile(t, 99)),
            "p10_us": float(np.percentile(t, 10)),
            "least_us": float(np.min(t)),
        }
        for name, t in times.items()
    }


def first_calls(policy: GEMPolicy, observation: Any) -> dict[str, float]:
    """Seconds of a compiled policy's first decision: its library made, and found by a copy."""
    seconds = {}
    for name, asked in (("made", policy), ("found", copy.deepcopy(policy))):
        start = time.perf_counter()
        asked.predict(observation, deterministic=True)
        seconds[name] = time.perf_counter() - start
    return seconds


def multiplications(members: int, count: int) -> int:
    """Multiply-adds of one decision's networks."""
    width = 256
    critic = members * count * (ACTIONS * width + width * width + width)
    critic += members * OBSERVATIONS * width
    head = width * 5 * (1 + 2 * ACTIONS)
    return critic + 2 * (OBSERVATIONS * width + width * width + head)


def main() -> None:
    """Measure, print a table, write JSON."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GEM_POLICY_CACHE"] = folder
        measure()


def measure() -> None:
    """All of it; what is compiled lies in the folder that the environment names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from stable_baselines3 import SAC

    sac = SAC("MlpPolicy", gym.make("Hopper-v5"), device="cpu")
    observation = np.random.default_rng(0).normal(size=OBSERVATIONS)
    calls: dict[str, Callable[[], Any]] = {
        "SB3 SAC predict": lambda: sac.predict(observation, deterministic=True)
    }
    for count in (1, 4, 16, 32, 64):
        policy = random_policy(4)
        policy.selection = policy.selection.replace(candidates=count)
        calls[f"GEM predict N={count} E=4"] = lambda p=policy: p.predict(  # type: ignore[misc]
            observation, deterministic=True
        )
    for name, frequencies in (("", 0), (", 6 frequencies", 6)):
        ahead = random_policy(4, lookahead=True, critic_frequencies=frequencies)
        calls[f"GEM predict N=32, lookahead{name}"] = lambda p=ahead: p.predict(  # type: ignore[misc]
            observation, deterministic=True
        )
    first = {}
    for name, lookahead in (("", False), (", lookahead", True)):
        made = random_policy(4, lookahead=lookahead)
        made.compiled = True
        first[f"GEM predict N=32{name}, compiled"] = first_calls(made, observation)
        calls[f"GEM predict N=32{name}, compiled"] = lambda p=made: p.predict(  # type: ignore[misc]
            observation, deterministic=True
        )
    table = alternate(calls, options.repeats)
    left, right = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    large: dict[str, Callable[[], Any]] = {PRODUCT: lambda: torch.mm(left, right)}
    for name in LARGE:
        policy = random_policy(10)
        policy.selection = policy.selection.replace(candidates=256)
        policy.compiled = name.endswith("compiled")
        large[name] = lambda p=policy: p.predict(  # type: ignore[misc]
            observation, deterministic=True
        )
    table |= alternate(large, options.repeats // 10)
    rate, best = (2 * SIZE**3 / table[PRODUCT][k] / 1e3 for k in ("median_us", "least_us"))
    work = 2 * multiplications(10, 256)
    achieved = {name: work / table[name]["median_us"] / 1e3 for name in LARGE}
    products = 2 * multiplications(4, 32) / rate / 1e3
    base = table["SB3 SAC predict"]["median_us"]
    for name, row in table.items():
        print(
            f"{name:28} median {row['median_us']:8.0f} us   p99 {row['p99_us']:8.0f} us   "
            f"{row['median_us'] / base:5.2f} x SAC"
        )
    print(f"matmul {rate:.0f} GFLOP/s, at best {best:.0f}")
    for name, reached in achieved.items():
        print(f"{name} reaches {reached:.0f} ({reached / rate:.0%}, {reached / best:.0%})")
    for name, seconds in first.items():
        print(f"{name}: first call {seconds['made']:.1f} s, {seconds['found']:.1f} s when found")
    print(f"the matrix products of N=32 E=4 alone take {products:.0f} us at that rate")
    if options.json:
        document = {
            "machine": machine(),
            "repeats": options.repeats,
            "rows": table,
            "first_call_s": first,
            "matmul_gflops": rate,
            "matmul_best_gflops": best,
            "large_gflops": achieved,
            "n32_e4_products_us": products,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
