"""How far are estimates from data alone from the returns of the simulator?

    python benchmarks/offline_estimates.py POLICY DATASET [--candidates 1,4,16] [--kappa 0.3,3]
        [--support-weight 0,1,3] [--updates 3000] [--starts 40] [--json FILE]

Fitted Q evaluation of every setting (`gem-policy estimate`), beside the discounted return that the
same setting earns in the simulator from the same starts: those of held-out episodes, position,
velocity and goal. PointMaze only, since there an observation is the whole state. Spearman's
correlation is over settings: does the estimate order them? Pearson's is over starts, within a
setting. FILE keeps the rows of other policies.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from scipy.stats import pearsonr, spearmanr

from gem_policy import GEMPolicy
from gem_policy.cli import numbers
from gem_policy.environments import make_env
from gem_policy.evaluate import Interval, machine
from gem_policy.rollouts import Job, Objective, roll_out
from gem_policy.simulators import save
from gem_policy.training.dataset import Dataset, load
from gem_policy.training.fitted_q import Estimate, estimate, grid
from gem_policy.training.fitted_q_learner import FittedQConfig
from gem_policy.training.preparation import split

NOTE = (
    "`estimated` is the mean over all held-out starts, `estimated_here` and `real` over those that "
    "were played; in scaled and shifted reward, discounted, as the critics were trained. "
    "`pearson` is over the starts that were played. `mean_error` is the mean over settings of "
    "|estimated_here - real|, `bias` the same with its sign; `real_range` is what the settings "
    "differ by in truth. `wins`: the real return of the setting with the best estimate, of the "
    "best setting, and the mean of all, which a blind choice earns."
)


def held_out_starts(policy: GEMPolicy, data: Dataset) -> torch.Tensor:
    """First observations of the held-out episodes, in the order of `estimate`'s values."""
    train = policy.provenance["train"]
    kept = split(data, train["holdout"], train["seed"])[1].transitions
    steps = torch.cumsum(kept.lengths, 0) - kept.lengths
    return kept.observations[steps + torch.arange(kept.episodes)]


def moments(policy: GEMPolicy, env: Any, rows: torch.Tensor) -> list[Any]:
    """Snapshots of a maze with position, velocity and goal of each row."""
    out = []
    env.reset(seed=0)
    inner = env.unwrapped
    for row in rows.numpy():
        seen = gym.spaces.unflatten(policy.observation_space, row.astype(np.float64))
        inner.point_env.set_state(seen["observation"][:2], seen["observation"][2:])
        inner.goal = np.array(seen["desired_goal"])
        out.append(save(env))
    return out


def real_returns(
    policy: GEMPolicy, rows: torch.Tensor, found: list[Estimate], options: Any, bar: Any
) -> list[list[Any]]:
    """Rollouts of every setting from every start."""
    envs = [make_env(policy, max_episode_steps=-1) for _ in range(min(options.envs, len(rows)))]
    for env in envs:
        env.reset(seed=0)
    starts = moments(policy, envs[0], rows)
    task = bar.add_task("playing", total=len(found) * len(rows))
    own, out = policy.selection, []
    for one in found:
        policy.selection = one.selection
        first = policy.decide(rows).action.numpy()
        jobs = [Job(s, a.astype(np.float32)) for s, a in zip(starts, first, strict=True)]
        out.append(
            roll_out(
                envs,
                jobs,
                policy,
                objective=Objective.of(policy, "training"),
                horizon=options.horizon,
                progress=lambda: bar.advance(task),
            )
        )
    policy.selection = own
    for env in envs:
        env.close()
    return out


def measure(policy: GEMPolicy, data: Dataset, options: Any, bar: Any) -> dict[str, Any]:
    """One row: estimate, play, compare."""
    began, cpu = time.perf_counter(), time.process_time()
    selections = grid(
        policy.selection,
        numbers(options.candidates, int, "--candidates"),
        numbers(options.kappa, float, "--kappa"),
        numbers(options.support_weight, float, "--support-weight"),
    )
    config = FittedQConfig(
        updates=options.updates, transitions=options.transitions, target_rate=options.target_rate
    )
    task = bar.add_task("deciding", total=None)

    def tell(what: str, done: int, total: int) -> None:
        bar.update(task, description=what, completed=done, total=total)

    found = estimate(policy, data, selections, config, progress=tell)
    fit_seconds = time.process_time() - cpu
    rows = held_out_starts(policy, data)
    chosen = np.random.default_rng(0).permutation(len(rows))[: options.starts]
    played = real_returns(policy, rows[torch.from_numpy(chosen)], found, options, bar)
    settings = []
    for one, outcomes in zip(found, played, strict=True):
        real, here = np.array([o.value for o in outcomes]), one.values[chosen]
        settings.append(
            {
                "candidates": one.selection.candidates,
                "kappa": one.selection.kappa,
                "support_weight": one.selection.support_weight,
                "estimated": asdict(one.value),
                "estimated_here": float(here.mean()),
                "real": asdict(Interval.of(real.tolist())),
                "ended": float(np.mean([o.ended for o in outcomes])),
                "pearson": float(pearsonr(here, real).statistic),
                "spread": one.spread,
                "drift": one.drift,
            }
        )
    guess = np.array([s["estimated_here"] for s in settings])
    truth = np.array([s["real"]["mean"] for s in settings])
    return {
        "policy": options.policy,
        "dataset_id": data.id,
        "config": asdict(config),
        "starts": len(chosen),
        "horizon": options.horizon,
        "spearman": float(spearmanr(guess, truth).statistic),
        "mean_error": float(np.abs(guess - truth).mean()),
        "bias": float((guess - truth).mean()),
        "real_range": float(np.ptp(truth)),
        "wins": {
            "estimated_best": float(truth[guess.argmax()]),
            "best": float(truth.max()),
            "blind": float(truth.mean()),
        },
        "settings": settings,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "fit_cpu_seconds": round(fit_seconds, 1),
        "machine": machine(),
    }


def table(row: dict[str, Any]) -> str:
    """A row as Markdown."""
    lines = [
        f"{row['policy']}, {row['starts']} starts",
        "| N | kappa | lambda | estimated | real | ended, % | Pearson over starts | spread "
        "| drift |",
        "| --- " * 9 + "|",
    ]
    for x in row["settings"]:
        real = x["real"]
        lines.append(
            f"| {x['candidates']} | {x['kappa']:g} | {x['support_weight']:g} | "
            f"{x['estimated_here']:.4f} | "
            f"{real['mean']:.4f} [{real['low']:.4f}, {real['high']:.4f}] | {100 * x['ended']:.0f} "
            f"| {x['pearson']:.2f} | {x['spread']:.4f} | {x['drift']:.4f} |"
        )
    wins = row["wins"]
    lines.append(
        f"Spearman over settings {row['spearman']:.2f}, mean error {row['mean_error']:.4f}, bias "
        f"{row['bias']:.4f}, the settings differ by {row['real_range']:.4f}; the one estimated "
        f"best earns {wins['estimated_best']:.4f}, the best {wins['best']:.4f}, a blind choice "
        f"{wins['blind']:.4f}"
    )
    lines.append(f"{row['seconds']:.0f} s, {row['cpu_seconds']:.0f} s of one processor")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", help="shipped name, file, folder or hf://org/repo")
    parser.add_argument("dataset", help="Minari id or path")
    parser.add_argument("--candidates", default="1,4,16")
    parser.add_argument("--kappa", default="0.3,3")
    parser.add_argument("--support-weight", default="0,1,3")
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--target-rate", type=float, default=0.1)
    parser.add_argument("--transitions", type=int, default=20_000)
    parser.add_argument("--starts", type=int, default=40, help="that are played")
    parser.add_argument("--horizon", type=int, default=600)
    parser.add_argument("--envs", type=int, default=40, help="side by side")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = GEMPolicy.load(options.policy, device="cpu")
    data = load(options.dataset)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as bar:
        row = measure(policy, data, options, bar)
    print(table(row))
    if options.json:
        rows: dict[str, Any] = {}
        if options.json.exists():
            rows = json.loads(options.json.read_text())["rows"]
        rows[options.policy] = row
        options.json.write_text(json.dumps({"note": NOTE, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
