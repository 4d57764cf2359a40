"""The README's table of trainings with every default, from the JSON of `compare.py` and `evaluate`.

    python benchmarks/iql/table.py

Reads benchmarks/results/iql.json (the records whose label begins with "defaults" or "as shipped")
and the *_budget.json there, each written by

    gem-policy evaluate RUN --episodes 50 --envs 50 --seed 160000 --batched
                            --candidates 1,4,16,64,256 --json FILE

with 100 episodes on HalfCheetah, whose few falls need more of them.
A word between a file's first and its last says what is special about the run, such as a training
seed other than 0. Of both only trainings with today's defaults are shown, all settings of training
but the seed, of selection but N: what was made with earlier ones stays on record.

Run again it changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gem_policy.config import NetworkConfig, SelectionConfig
from gem_policy.training.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- defaults: benchmarks/iql/table.py -->", "<!-- end of defaults -->"
GAINS = (16, 256)  # budgets whose returns are compared with those of N = 1
Curve = dict[int, dict[str, Any]]  # rows of a report by N
COLUMNS = {
    "cloning (behavior sample)": "cloning, sample",
    "cloning (behavior mode)": "cloning, mode",
    "d3rlpy IQL": "d3rlpy IQL",
    "actor mode": "GEM's actor",
    "GEM": "GEM",
}


def interval(row: dict[str, Any]) -> str:
    """``mean [low, high]`` of the return."""
    x = row["summary"]["return"]
    return f"{x['mean']:.0f} [{x['low']:.0f}, {x['high']:.0f}]"


def line(record: dict[str, Any]) -> str:
    """One dataset as a row of the table."""
    cells = []
    for label in COLUMNS:
        row = next(r for r in record["rows"] if r["label"].startswith(label))
        count = row["label"].split()[1] if label == "GEM" else ""
        cells.append(f"{interval(row)} {count}".strip())
    numbers = [f"{record['updates']}", phases(record["gem_updates"])]
    seed = record["iql"]["seed"]  # of both trainings
    name = name_of(record["dataset_id"]) + (f", seed {seed}" if seed else "")
    return " | ".join([f"| {name}", *numbers, *cells]) + " |"


def phases(updates: dict[str, int]) -> str:
    """Updates of GEM's four phases, the least and the most of them if they differ."""
    least, most = min(updates.values()), max(updates.values())
    return f"{least}" if least == most else f"{least} to {most}"


def name_of(dataset_id: str) -> str:
    """A dataset's id, as the tables show it."""
    return dataset_id.removeprefix("gem/").removesuffix("-v0")


def with_defaults(document: dict[str, Any]) -> bool:
    """Whether what was played was trained, and chooses, with today's defaults."""
    train, network = document.get("train"), document.get("network")
    if train is None or network is None:
        return False
    default = asdict(NetworkConfig(network["observation_size"], network["action_size"]))
    same = json.loads(json.dumps(default)) == network  # JSON has lists for tuples
    return same and train == asdict(TrainConfig(seed=train["seed"])) and chooses_so(document)


def chooses_so(document: dict[str, Any]) -> bool:
    """Whether the policy's rows have today's settings of selection, whatever their budget.

    With one candidate there is nothing to choose: such a row counts, whatever its settings.
    """
    counts = {n: row["settings"] for n, row in curve_of(document).items() if n > 1}
    return all(own == asdict(SelectionConfig(candidates=n)) for n, own in counts.items())


def gains(curves: list[Curve]) -> list[str]:
    """Mean return with N = 16 and 256 less that with N = 1, each with its standard error.

    Of one training that of two independent means: older records tell episodes in the order of their
    ends, and cannot be compared start by start. Of several that of the trainings' differences.
    """
    cells = []
    for count in GAINS:
        played = [curve for curve in curves if {1, count} <= set(curve)]
        pairs = [[np.array(curve[n]["episodes"]["return"]) for n in (1, count)] for curve in played]
        differences = np.array([many.mean() - one.mean() for one, many in pairs])
        if not pairs or len(pairs) == 1 < len(curves):
            cells.append("")
            continue
        if len(curves) == 1:
            error = np.hypot(*(x.std(ddof=1) / len(x) ** 0.5 for x in pairs[0]))
        else:
            error = differences.std(ddof=1) / len(pairs) ** 0.5
        cells.append(f"{differences.mean():+.0f} ± {error:.0f}{fewer(played, curves)}")
    return cells


def mean_of(curves: list[Curve], count: int) -> str:
    """Mean over trainings of the mean return, of those in which it was played."""
    played = [curve for curve in curves if count in curve]
    if not played:
        return ""
    mean = np.mean([curve[count]["summary"]["return"]["mean"] for curve in played])
    return f"{mean:.0f}{fewer(played, curves)}"


def fewer(played: list[Curve], curves: list[Curve]) -> str:
    """In brackets how many trainings a number is of, if not of all."""
    return "" if len(played) == len(curves) else f" ({len(played)})"


def curve_of(document: dict[str, Any]) -> Curve:
    """Rows of the policy by N."""
    rows = [row for row in document["rows"] if row["label"].startswith("GEM")]
    return {row["settings"]["candidates"]: row for row in rows}


def budgets() -> list[str]:
    """Returns over N: a line of a table for every ``*_budget.json``, and for every dataset."""
    read = {path: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*_budget.json"))}
    shown = {path: document for path, document in read.items() if with_defaults(document)}
    curves = {path: curve_of(document) for path, document in shown.items()}
    counts = sorted(set().union(*curves.values()))
    columns = ["data", "starts", *(f"N = {n}" for n in counts), *(f"{n} less 1" for n in GAINS)]
    lines, alike = [], dict[tuple[str, str], list[Curve]]()
    for path, document in shown.items():
        special = [word.replace("-", " ") for word in path.stem.split("_")[1:-1]]
        name, curve = name_of(document["dataset_id"]), curves[path]
        starts = f"{document['episodes']} from {document['seed']}"
        cells = [interval(curve[n]) if n in curve else "" for n in counts]
        lines.append([", ".join([name, *special]), starts, *cells, *gains([curve])])
        alike.setdefault((name, starts), []).append(curve)
    means = [
        [f"{name}, mean of {len(own)}", starts, *(mean_of(own, n) for n in counts), *gains(own)]
        for (name, starts), own in alike.items()
        if len(own) > 1
    ]
    rule = ["---"] * len(columns)
    return [f"| {' | '.join(cells)} |" for cells in (columns, rule, *means, *lines)]


def body() -> str:
    """Both tables."""
    records = json.loads((RESULTS / "iql.json").read_text())["records"]
    shown = [
        r
        for r in records
        if r["label"].startswith("as shipped")
        or (r["label"].startswith("defaults") and with_defaults(r))
    ]
    episodes, seed = shown[0]["episodes"], shown[0]["seed"]
    return "\n".join(
        [
            f"| data | IQL's updates | GEM's, a phase | {' | '.join(COLUMNS.values())} |",
            "| --- " * (3 + len(COLUMNS)) + "|",
            *(line(r) for r in sorted(shown, key=lambda r: (r["dataset_id"], r["updates"]))),
            "",
            f"Returns, {episodes} episodes a row, from seed {seed}. The budget:",
            "",
            *budgets(),
        ]
    )


def main() -> None:
    """Write the tables into the README."""
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(START)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{START}\n{body()}\n{END}{after}")


if __name__ == "__main__":
    main()
