"""What each wrapper costs per step, beside the bare environment and one decision of the policy.

    python benchmarks/wrappers.py [--json FILE]

Hopper-v5 and a policy with random weights of the standard sizes, N = 32. Every variant plays the
same actions; they take turns, step by step, so that whatever else the machine does falls on all
alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from latency import random_policy

from gem_policy.evaluate import machine
from gem_policy.wrappers import (
    CandidateChoice,
    MatchSpaces,
    SuccessInfo,
    SupportMonitor,
    SupportShield,
    vector,
)

ENVS = 16


def in_turns(
    steps: dict[str, tuple[gym.Env[Any, Any], Callable[[], Any]]], repeats: int
) -> dict[str, list[float]]:
    """Microseconds of every step of every variant; the first 20 warm caches and do not count."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(repeats + 20):
        for name, (env, action) in steps.items():
            given = action()
            start = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(given)
            elapsed = (time.perf_counter() - start) * 1e6
            if k >= 20:
                times[name].append(elapsed)
            if np.ndim(terminated) == 0 and (terminated or truncated):
                env.reset()
    return times


def table(times: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median step, its 10th and 90th percentile, and the median overhead over the bare step."""
    bare = np.asarray(times[base])
    return {
        name: {
            "median_us": float(np.median(t)),
            "p10_us": float(np.percentile(t, 10)),
            "p90_us": float(np.percentile(t, 90)),
            "overhead_us": float(np.median(np.asarray(t) - bare)),
        }
        for name, t in times.items()
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    policy = random_policy(4)
    rng = np.random.default_rng(0)

    def single() -> gym.Env[Any, Any]:
        # Random weights keep no hopper upright: without its falls, episodes have one length.
        return gym.make("Hopper-v5", terminate_when_unhealthy=False)

    def push() -> Any:
        return rng.uniform(-1, 1, 3).astype(np.float32)

    def shield(percentile: float, mode: str) -> gym.Env[Any, Any]:
        return SupportShield(single(), policy, percentile, mode)

    singles = {
        "bare environment": (single(), push),
        "SuccessInfo": (SuccessInfo(single()), push),
        "MatchSpaces": (MatchSpaces(single(), policy), push),
        "SupportShield, passes": (shield(0.0, "replace"), push),
        "SupportShield, replaces": (shield(100.0, "replace"), push),
        "SupportShield, nearest": (shield(100.0, "nearest"), push),
        "CandidateChoice": (CandidateChoice(single(), policy), lambda: int(rng.integers(32))),
        "SupportMonitor": (SupportMonitor(single(), policy), push),
    }

    def several() -> Any:
        return SyncVectorEnv([single] * ENVS)

    def pushes() -> Any:
        return rng.uniform(-1, 1, (ENVS, 3)).astype(np.float32)

    vectors = {
        f"bare environments, {ENVS}": (several(), pushes),
        "vector SupportShield, replaces": (
            vector.SupportShield(several(), policy, 100.0),
            pushes,
        ),
        "vector SupportMonitor": (vector.SupportMonitor(several(), policy), pushes),
    }
    for env, _ in (*singles.values(), *vectors.values()):
        env.reset(seed=0)
    rows = table(in_turns(singles, options.repeats), next(iter(singles)))
    rows |= table(in_turns(vectors, max(options.repeats // 10, 20)), next(iter(vectors)))
    observation = rng.normal(size=11)
    decisions = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        policy.predict(observation, deterministic=True)
        decisions.append((time.perf_counter() - start) * 1e6)
    decision = float(np.median(decisions))
    for name, row in rows.items():
        print(
            f"{name:32} step {row['median_us']:8.0f} us [{row['p10_us']:.0f}, {row['p90_us']:.0f}]"
            f"   overhead {row['overhead_us']:8.0f} us = {row['overhead_us'] / decision:5.2f} x "
            "predict"
        )
    print(f"policy.predict, N=32, E=4: {decision:.0f} us")
    if options.json:
        document = {
            "machine": machine(),
            "repeats": options.repeats,
            "envs": ENVS,
            "rows": rows,
            "predict_us": decision,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
