"""Does the score rank the candidates as the simulator does?

    python benchmarks/ranking.py POLICY [--states 30 30] [--candidates 32] [--horizon 300]
        [--follow selection] [--objective training] [--repeats 1 --noise 0] [--json FILE]

In the policy's own environment, moments are saved: one of each of so many episodes of the policy
(the first number of --states) and of the behavior model, sampled (the second). From each of them
every candidate is played as the first action, and then the policy goes on: as it is shipped
(--follow selection), or the actor's mode (--follow mode, many times cheaper). Return: --objective
training is what the critics predict, until the return ends (in mazes, steps to the goal, with the
sign changed, discounted and scaled); environment is the discounted reward. Both are cut at the
horizon, and nothing is added for what may come after it. Without noise everything is deterministic
and one rollout is the exact return.

FILE keeps what it has of other policies and settings: a row is replaced by a later one of the same
policy, objective and follower.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gem_policy import GEMPolicy, pretrained
from gem_policy.environments import evaluation_spec, make_env
from gem_policy.evaluate import machine
from gem_policy.mixture_predictor import MixturePredictor
from gem_policy.ranking import reliability, score_components, summarize
from gem_policy.rollouts import Objective, Start, candidate_returns, collect
from gem_policy.spaces import ObservationReader

BUDGETS = (1, 4, 16, 32, 64, 128, 256)
NOTE = (
    "Over states, one per episode, with 95 % bootstrap intervals. `budgets`: by N', the first N' "
    "candidates. `tau`: Kendall's tau-b of score and return, over the `tau_states` in which not "
    "all returns are the same; `tau_of`: of each part of the score. `regret`: best of the N' less "
    "the chosen one; `random_regret`: less the mean of all; `gain`: chosen less the actor's mode; "
    "`room`: best less mode; `better`, `worse`: shares of states in which the chosen one returns "
    "more or less than the mode. `ended`: share of rollouts whose return ended before the "
    "horizon. Returns are in the critics' units for the objective `training` (in the shipped "
    "mazes 0.01 is about one step), in discounted reward for `environment`."
)


def gather(
    policy: GEMPolicy, envs: list[Any], objective: Objective, options: Any, tell: Any
) -> dict[str, list[Start]]:
    """Moments of the policy's own episodes and of the behavior model's."""
    limit = evaluation_spec(policy.provenance).max_episode_steps or options.horizon
    own, behavior = options.states
    who = {
        "own": (policy, True, range(options.seed, options.seed + own)),
        "behavior": (
            MixturePredictor(policy, "behavior", options.seed),
            False,
            range(options.seed + own, options.seed + own + behavior),
        ),
    }
    return {
        name: collect(
            envs,
            actor,
            deterministic=deterministic,
            objective=objective,
            limit=limit,
            seeds=seeds,
            progress=tell,
        )
        for name, (actor, deterministic, seeds) in who.items()
        if len(seeds)
    }


def measure(policy: GEMPolicy, options: Any, bar: Any) -> dict[str, Any]:
    """One row: gather moments, play the candidates, sum up."""
    began, cpu = time.perf_counter(), time.process_time()
    objective = Objective.of(policy, options.objective)
    envs = [make_env(policy, max_episode_steps=-1) for _ in range(options.envs)]
    for env in envs:
        env.reset(seed=options.seed)
    task = bar.add_task("episodes", total=sum(options.states))
    found = gather(policy, envs, objective, options, lambda: bar.advance(task))
    starts = [start for group in found.values() for start in group]

    reader = ObservationReader(policy.observation_space)
    rows = torch.from_numpy(np.concatenate([reader.read(s.observation)[0] for s in starts]))
    budgets = sorted({n for n in BUDGETS if n < options.candidates} | {options.candidates})
    actions, components = score_components(policy, rows, budgets)
    follow = policy if options.follow == "selection" else MixturePredictor(policy, "actor")
    bar.update(
        task, description="rollouts", completed=0, total=options.repeats * actions[..., 0].size
    )
    returns, ended = candidate_returns(
        envs,
        starts,
        actions,
        follow,
        objective=objective,
        horizon=options.horizon,
        repeats=options.repeats,
        noise=options.noise,
        seed=options.seed,
        progress=lambda: bar.advance(task),
    )
    for env in envs:
        env.close()
    origin = np.repeat(list(found), [len(group) for group in found.values()])
    groups = {name: origin == name for name in found}
    if len(groups) > 1:
        groups = {"all": np.full(len(origin), True), **groups}
    return {
        "policy": called(options.policy, policy),
        "dataset_id": policy.provenance.get("dataset_id"),
        "selection": dataclasses.asdict(policy.selection),
        "objective": {"kind": options.objective, **dataclasses.asdict(objective)},
        "follow": options.follow,
        "horizon": options.horizon,
        "repeats": options.repeats,
        "noise": options.noise,
        "seed": options.seed,
        "candidates": options.candidates,
        "states": {name: len(group) for name, group in found.items()},
        "ended": float(ended.mean()),
        "reliability": reliability(returns),
        "groups": {
            name: summarize(
                {n: {k: x[chosen] for k, x in c.items()} for n, c in components.items()},
                returns[chosen],
            )
            for name, chosen in groups.items()
        },
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "machine": machine(),
    }


def called(source: str, policy: GEMPolicy) -> str:
    """A shipped policy's name; of any other the dataset, which names no folder of this machine."""
    return source if source in pretrained.names() else str(policy.provenance["dataset_id"])


def interval(x: dict[str, float] | None, digits: int = 4, factor: float = 1.0) -> str:
    """An interval as text."""
    if x is None:
        return "-"
    low, mean, high = (f"{factor * x[k]:.{digits}f}" for k in ("low", "mean", "high"))
    return f"{mean} [{low}, {high}]"


def table(name: str, row: dict[str, Any]) -> str:
    """A row as Markdown, one line per group of states and budget."""
    lines = [
        f"{name}: {row['states']} states, horizon {row['horizon']}, {row['ended']:.0%} ended",
        "| states | N' | tau of score | regret | of a blind choice | gain over mode | room "
        "| better, % | worse, % |",
        "| --- " * 9 + "|",
    ]
    for group, budgets in row["groups"].items():
        for count, x in budgets.items():
            cells = [group, count, f"{interval(x['tau'], 2)} ({x['tau_states']})"]
            cells += [interval(x[key]) for key in ("regret", "random_regret", "gain", "room")]
            cells += [interval(x[key], 0, 100) for key in ("better", "worse")]
            lines.append("| " + " | ".join(cells) + " |")
    most = str(row["candidates"])
    for group, budgets in row["groups"].items():
        parts = {k: v for k, v in budgets[most]["tau_of"].items() if k != "score"}
        told = ", ".join(f"{k} {interval(v, 2)}" for k, v in parts.items())
        lines.append(f"tau at N = {most}, {group}: {told}")
    if row["reliability"] is not None:
        lines.append(f"tau between halves of the repeats: {interval(row['reliability'], 2)}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", help="shipped name, file, folder or hf://org/repo")
    parser.add_argument("--states", type=int, nargs=2, default=[30, 30], help="own, behavior")
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--horizon", type=int, default=300)
    parser.add_argument("--follow", choices=("selection", "mode"), default="selection")
    parser.add_argument("--objective", choices=("training", "environment"), default="training")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--noise", type=float, default=0.0, help="in half ranges of the actions")
    parser.add_argument("--envs", type=int, default=64, help="side by side")
    parser.add_argument("--seed", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = GEMPolicy.load(options.policy, device="cpu")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as bar:
        row = measure(policy, options, bar)
    name = f"{called(options.policy, policy)}, {options.objective}, follow {options.follow}"
    if options.noise:
        name += f", noise {options.noise:g}"
    print(table(name, row))
    print(f"{row['seconds']:.0f} s, {row['cpu_seconds']:.0f} s of one processor")
    if options.json:
        rows: dict[str, Any] = {}
        if options.json.exists():
            rows = json.loads(options.json.read_text())["rows"]
        rows[name] = row
        document = {"note": NOTE, "rows": rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
