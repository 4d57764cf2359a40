"""Make the datasets of `gem-policy datasets list`, time it, and say what is in them.

    python benchmarks/datasets.py [NAME ...] [--steps N] [--workers N] [--json FILE]

A set that is there already is not made again, whatever its size, and keeps the time that FILE has
for it. FILE is written after every set, so that an interrupted run goes on where it stopped. Sets
go where MINARI_DATASETS_PATH says: give reduced ones (--steps) a folder of their own, or they are
taken for the whole.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import h5py

from gem_policy.evaluate import machine
from gem_policy.training import recipes
from gem_policy.training.atomic import write_atomically
from gem_policy.training.dataset import Dataset, load
from gem_policy.training.location import local_ids, locate

# What is known of the published sets in whose role ours stand. Their data is not ours: other
# agents, other seeds, in part other simulators. Sizes are from the sets' cards and generation
# scripts.
PUBLISHED = {
    "gem/pointmaze/umaze-v0": "D4RL/pointmaze/umaze-v2: 13 210 episodes, 1 000 000 steps",
    "gem/antmaze/umaze-v0": "D4RL/antmaze/umaze-v1: about 1430 episodes, 1 000 000 steps",
    "gem/antmaze/umaze-diverse-v0": "D4RL/antmaze/umaze-diverse-v1: about 1430 episodes, "
    "1 000 000 steps",
    **{
        f"gem/antmaze/{kind}-v0": f"D4RL/antmaze/{kind}-v1: 1000 episodes, 1 000 000 steps"
        for kind in ("medium-play", "medium-diverse", "large-play", "large-diverse")
    },
    "gem/door/human-v0": "D4RL door-human: 25 episodes, 6729 steps",
    "gem/door/cloned-v0": "D4RL door-cloned: 4358 episodes, 1 000 000 steps",
    **{f"gem/{t}/expert-v0": f"D4RL {t}-expert: 5000 episodes" for t in ("door", "pen", "hammer")},
}
NOTE = (
    "`normalized` is the mean return on the set's own scale: 0 is a random policy, 100 the expert, "
    "both measured here in the evaluation environment. Where `same_task` is false, data and "
    "evaluation differ in start, goal or length of an episode, and it says little. `goals` counts "
    "episodes in which the environment reported success. `seconds` includes the reference scores; "
    "sets made in one run that have the evaluation task in common measured them once, and the "
    "first of them took the time. `seconds` is null for a set that was there before and, "
    "for one whose making was interrupted, that of the last run. `load` is the machine's load "
    "average of one minute before and after."
)


def make(name: str, steps: int | None, workers: int) -> dict[str, Any]:
    """Make a dataset of at most `steps` steps and say what that took."""
    full = recipes.describe(name).steps
    steps = full if steps is None else min(steps, full)
    load_before, start, cpu = os.getloadavg()[0], time.perf_counter(), cpu_seconds()
    recipes.make(name, steps=steps, workers=workers)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(cpu_seconds() - cpu, 1),
        "processes": workers,
        "load": [round(load_before, 2), round(os.getloadavg()[0], 2)],
    }


def cpu_seconds() -> float:
    """Processor time of this process and of those it waited for."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(w)[:2]) for w in who)


def summarize(name: str) -> dict[str, Any]:
    """What is in a dataset, as training sees it."""
    data = load(name)
    returns = data.transitions.returns.double()
    assert data.ref_min is not None and data.ref_max is not None
    return {
        "steps": len(data.transitions),
        "full_steps": recipes.describe(name).steps,
        "seed": data.recipe["seed"],
        "episodes": data.transitions.episodes,
        "mean_return": returns.mean().item(),
        "std_return": returns.std(correction=0).item(),
        "terminated": int(data.transitions.terminated.sum()),
        "references": [data.ref_min, data.ref_max],
        "normalized": 100 * (returns.mean().item() - data.ref_min) / (data.ref_max - data.ref_min),
        "same_task": same_task(data),
        "goals": goals(name),
        "published": PUBLISHED.get(name),
        "made_with": data.recipe["made_with"],
    }


def same_task(data: Dataset) -> bool:
    """Whether policies are scored in the environment that the data comes from."""
    if data.eval_env_spec is None or data.env_spec is None:
        return True
    specs = [json.loads(spec) for spec in (data.env_spec, data.eval_env_spec)]
    return all(specs[0][key] == specs[1][key] for key in ("id", "max_episode_steps", "kwargs"))


def goals(name: str) -> int | None:
    """Number of episodes with a success; None where the task knows none."""
    # Not through Minari: its iterator decodes everything else, too.
    with h5py.File(locate(name) / "main_data.hdf5", "r") as file:
        found = [
            episode["infos/success"][()] for episode in file.values() if "infos/success" in episode
        ]
    return sum(bool(success.any()) for success in found) if found else None


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a Markdown table, in the order of the recipes."""
    lines = [
        "| dataset | steps (of full) | episodes | mean return | normalized | goals | seconds "
        "(CPU, processes) | published set (other data) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in [n for n in recipes.names() if "steps" in rows.get(n, {})]:
        row = rows[name]
        took = "was there"
        if row["seconds"] is not None:
            took = f"{row['seconds']:.0f} ({row['cpu_seconds']:.0f}, {row['processes']})"
        lines.append(
            f"| {name} | {row['steps']} ({row['steps'] / row['full_steps']:.0%}) | "
            f"{row['episodes']} | {row['mean_return']:.1f} ± {row['std_return']:.1f} | "
            f"{row['normalized']:.1f}{'' if row['same_task'] else ' *'} | "
            f"{'-' if row['goals'] is None else row['goals']} | {took} | {row['published'] or ''} |"
        )
    return "\n".join([*lines, "", "* data and evaluation are not the same task"])


def main() -> None:
    """Make, summarize, write JSON, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="as `gem-policy datasets list` shows; all if none")
    parser.add_argument("--steps", type=int, help="instead of the full size, where smaller")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    document: dict[str, Any] = {"rows": {}}
    if options.json and options.json.exists():
        document = json.loads(options.json.read_text())
    rows = document["rows"]

    def save() -> None:
        if options.json:
            whole = {"machine": machine(), "note": NOTE, "rows": rows}
            with write_atomically(options.json) as file:
                file.write((json.dumps(whole, indent=1) + "\n").encode())

    unknown = {"seconds": None, "cpu_seconds": None, "processes": None, "load": None}
    for name in [recipes.describe(n).name for n in options.names or recipes.names()]:
        if name in local_ids():
            cost = {key: rows.get(name, {}).get(key) for key in unknown}
        else:
            print(f"making {name}", flush=True)
            cost = make(name, options.steps, options.workers)
            rows[name] = cost
            save()  # the time is known now and never again
        rows[name] = cost | summarize(name)
        save()
        print(json.dumps({name: rows[name]}), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
