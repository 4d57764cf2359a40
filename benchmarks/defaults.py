"""Tables of trainings with every default, from the JSON of `iql/compare.py` and `evaluate`.

    python benchmarks/defaults.py

Reads benchmarks/results/iql.json (the records whose label begins with "defaults" or "as shipped")
and the *_budget.json there, each written by

    gem-policy evaluate RUN --episodes 50 --envs 50 --seed 160000 --batched
                            --candidates 1,4,16,64,256 --json FILE

with 100 episodes on HalfCheetah, whose few falls need more of them. Those with `per-nat` in their
name have 100 episodes from 170000, played with `--set gain_per_nat=0.01`, those with `deciding`
starts from 180000 or 190000 (`again`), played with `--set deciding_candidates=64` too: their
checkpoints were made before these were the defaults.
A word between a file's first and its last says what is special about the run, such as a training
seed other than 0. Of both only trainings with today's defaults are shown, all settings of training
but the seed, of selection but N: what was made with earlier ones stays on record. Marked, and
counted apart, is what was played before `gain_per_nat`, or with more than 64 candidates before
`deciding_candidates`, with else the same settings.

All of it goes into `benchmarks/RESULTS.md`, means into the README. Run again it changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from blocks import README, RESULTS, ROOT, fill, markdown

from gem_policy.config import NetworkConfig, SelectionConfig
from gem_policy.training.config import TrainConfig
from gem_policy.training.few_demonstrations import DECAY, WIDE

FOLDER = ROOT / "benchmarks" / "results"
NAME = "defaults: benchmarks/defaults.py"
SMALL_DATASETS = {"gem/door/human-v0"}  # whose size sets the defaults of decay and layers
SEVERAL = 3  # trainings, of which an error between them is told
GAINS = (16, 256)  # budgets whose returns are compared with those of N = 1
Curve = dict[int, dict[str, Any]]  # rows of a report by N
IQL = "d3rlpy IQL"
UPDATES = (20_000, 100_000)  # of IQL's, in the short table
# The latest settings of selection, the least N at which they make a difference, and the mark of a
# number that was played before them.
LATEST = {"gain_per_nat": (2, "¹"), "deciding_candidates": (65, "²")}
FALLS = {"halfcheetah/medium": 5000}  # returns of less are falls, which hide what every step costs
COLUMNS = {
    "cloning (behavior sample)": "cloning, sample",
    "cloning (behavior mode)": "cloning, mode",
    IQL: IQL,
    "actor mode": "GEM's actor",
    "GEM": "GEM",
}


def interval(row: dict[str, Any]) -> str:
    """``mean [low, high]`` of the return."""
    x = row["summary"]["return"]
    return f"{x['mean']:.0f} [{x['low']:.0f}, {x['high']:.0f}]"


def row_of(record: dict[str, Any], label: str) -> dict[str, Any]:
    """The record's row whose label begins so."""
    found: dict[str, Any] = next(r for r in record["rows"] if r["label"].startswith(label))
    return found


def line(record: dict[str, Any]) -> list[str]:
    """One training of one dataset as a row of the table."""
    cells = []
    for label in COLUMNS:
        row = row_of(record, label)
        count = budget_of(row) if label == "GEM" else ""
        cells.append(f"{interval(row)} {count}".strip())
    numbers = [f"{record['updates']}", phases(record["gem_updates"])]
    seed = record["iql"]["seed"]  # of both trainings
    name = name_of(record["dataset_id"]) + (f", seed {seed}" if seed else "")
    return [name, *numbers, *cells]


def short_line(dataset: str, records: list[dict[str, Any]]) -> list[str]:
    """Means of one dataset over trainings; in brackets over how many, if not over one.

    Args:
        dataset: Its id.
        records: Those of it: one for each training of IQL and number of its updates.
    """
    updates = sorted({r["updates"] for r in records})
    if not set(updates) <= set(UPDATES):
        raise ValueError(f"{dataset} has IQL's updates {updates}, the table {UPDATES}.")
    # One training of ours may stand beside several numbers of IQL's updates.
    ours = list({r["iql"]["seed"]: r for r in records}.values())
    columns = [
        _short(ours, "cloning (behavior mode)"),
        *(_short([r for r in records if r["updates"] == n], IQL) for n in UPDATES),
        _short(ours, "actor mode"),
        _short(ours, "GEM"),
    ]
    return [name_of(dataset), *columns]


def _short(records: list[dict[str, Any]], label: str) -> str:
    """Mean return of the rows with this label."""
    if not records:
        return ""
    rows = [row_of(record, label) for record in records]
    mean = np.mean([row["summary"]["return"]["mean"] for row in rows])
    counts = {budget_of(row) for row in rows if label == "GEM"}
    many = f" ({len(rows)})" if len(rows) > 1 else ""
    return f"{mean:.0f}{many} {', '.join(sorted(counts))}".strip()


def budget_of(row: dict[str, Any]) -> str:
    """``N=32``, and its mark."""
    return row["label"].split()[1] + mark(row)


def before(row: dict[str, Any]) -> str:
    """Before which of `LATEST` a row that asks for a gain was played; or nothing."""
    own = row.get("settings", {})
    if own.get("gain_kappa") is None:
        return ""
    late = (name for name, (least, _) in LATEST.items() if own["candidates"] >= least)
    return next((name for name in late if name not in own), "")


def mark(row: dict[str, Any]) -> str:
    """What is put behind a number of before."""
    return LATEST[name][1] if (name := before(row)) else ""


def with_legend(text: str) -> str:
    """The text, and what the marks in it stand for."""
    found = [f"{sign} before `{name}`" for name, (_, sign) in LATEST.items() if sign in text]
    return f"{text}\n\n{', '.join(found)}." if found else text


def over_iql(groups: dict[str, list[dict[str, Any]]]) -> str:
    """GEM's mean return less IQL's, seed by seed, where there are `SEVERAL` trainings or more."""
    told = []
    for dataset, records in groups.items():
        for updates in UPDATES:
            own = [r for r in records if r["updates"] == updates]
            if len(own) < SEVERAL:
                continue
            pairs = [
                [row_of(r, label)["summary"]["return"]["mean"] for label in ("GEM", IQL)]
                for r in own
            ]
            mean, error = with_error(np.subtract(*np.transpose(pairs)))
            cell = f"{round(mean):+d} ± {error:.0f} after {updates} updates of IQL"
            told.append(f"{name_of(dataset)} {cell} ({len(own)} trainings)")
    return "GEM less IQL, training by training:\n" + ";\n".join(told) + "." if told else ""


def over_itself(groups: dict[str, list[dict[str, Any]]], label: str) -> str:
    """GEM's return less that of its own row ``label``, start by start, of those that choose."""
    told = []
    for dataset, records in groups.items():
        for seed, own in {r["iql"]["seed"]: r for r in records}.items():
            gem, other = (row_of(own, name) for name in ("GEM", label))
            if gem["settings"]["candidates"] == 1:
                continue
            returns = [row["episodes"]["return"] for row in (gem, other)]
            mean, error = with_error(np.subtract(*np.array(returns)))
            name = name_of(dataset) + (f", seed {seed}" if seed else "")
            told.append(f"{name} {mean:+.0f} ± {error:.0f}")
    return f"GEM less {label}, start by start:\n" + ";\n".join(told) + "." if told else ""


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
    few = document["dataset_id"] in SMALL_DATASETS
    sizes = network["observation_size"], network["action_size"]
    default = asdict(NetworkConfig(*sizes, **(WIDE if few else {})))
    same = json.loads(json.dumps(default)) == network  # JSON has lists for tuples
    today = TrainConfig(seed=train["seed"], weight_decay=DECAY if few else 0.0)
    return same and train == asdict(today) and chooses_so(document)


def chooses_so(document: dict[str, Any]) -> bool:
    """Whether the policy's rows have today's settings of selection, whatever their budget.

    With one candidate there is nothing to choose: such a row counts, whatever its settings. Those
    of before `LATEST` count too.
    """
    counts = {n: row["settings"] for n, row in curve_of(document).items() if n > 1}
    today = {n: asdict(SelectionConfig(candidates=n)) for n in counts}
    latest = {n: {name: today[n][name] for name in LATEST} for n in counts}
    return all(today[n] == {**latest[n], **counts[n]} for n in counts)


def gains(curves: list[Curve]) -> list[str]:
    """Mean return with N = 16 and 256 less that with N = 1, each with its standard error.

    Of one training that of the differences on the same starts; of several that of the trainings'
    differences, or that of all their starts if it is larger: two or three trainings may agree by
    chance.
    """
    cells = []
    for count in GAINS:
        played = [curve for curve in curves if {1, count} <= set(curve)]
        if not played or len(played) == 1 < len(curves):
            cells.append("")
            continue
        each = np.array([with_error(gained(curve, count)) for curve in played])
        mean, error = each[:, 0].mean(), np.hypot.reduce(each[:, 1]) / len(each)
        if len(each) > 1:
            error = max(error, with_error(each[:, 0])[1])
        cell = f"{round(mean):+d} ± {error:.0f}{marks(played, count)}"
        cells.append(f"{cell}{fewer(played, curves)}")
    return cells


def marks(played: list[Curve], count: int) -> str:
    """The marks of what several trainings have with N = ``count``."""
    return "".join(sorted({mark(curve[count]) for curve in played}))


def gained(curve: Curve, count: int) -> npt.NDArray[np.float64]:
    """Returns with N = ``count`` less those with N = 1, start by start."""
    many, one = (curve[n]["episodes"]["return"] for n in (count, 1))
    return np.subtract(many, one)


def with_error(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def tally(curves: list[Curve]) -> list[str]:
    """How often another budget is worse or better than N = 1, start by start, beyond chance.

    A paragraph for every time of `before`.
    """
    times: dict[str, list[tuple[float, float]]] = {}
    for curve in (own for own in curves if 1 in own):
        for n in set(curve) - {1}:
            times.setdefault(before(curve[n]), []).append(with_error(gained(curve, n)))
    told = []
    for name in ("", *reversed(LATEST)):
        if found := times.get(name):
            worse = sum(mean < -1.96 * error for mean, error in found)
            better = sum(mean > 1.96 * error for mean, error in found)
            when = f"Before `{name}`:\n" if name else ""
            told.append(
                f"{when}Of the {len(found)} differences of a training's budgets to its N = 1,\n"
                f"start by start, {worse} are below 0 by more than 1.96 standard errors,\n"
                f"{better} above; by chance {0.025 * len(found):.1f}."
            )
    return told


def without_falls(curves: dict[str, Curve], least: float) -> list[list[str]]:
    """What a budget changes on the starts on which neither it nor N = 1 falls, and how many fall.

    Args:
        curves: Trainings by name.
        least: The least return that is no fall.
    """
    counts = sorted(set().union(*curves.values()))
    rows = [["training", *(f"N = {n}" for n in counts)]]
    for name, curve in curves.items():
        returns = {n: np.array(curve[n]["episodes"]["return"]) for n in counts if n in curve}
        cells = []
        for count in counts:
            if count not in returns:
                cells.append("")
                continue
            many = returns[count]
            both = (many >= least) & (returns[1] >= least)
            mean, error = with_error((many - returns[1])[both])
            change = f"{mean:+.1f} ± {error:.1f}, " if count > 1 else ""
            cells.append(f"{change}{int((many < least).sum())} fall{mark(curve[count])}")
        rows.append([name, *cells])
    return rows


def mean_of(curves: list[Curve], count: int) -> str:
    """Mean over trainings of the mean return, of those in which it was played."""
    played = [curve for curve in curves if count in curve]
    if not played:
        return ""
    mean = np.mean([curve[count]["summary"]["return"]["mean"] for curve in played])
    return f"{mean:.0f}{marks(played, count)}{fewer(played, curves)}"


def fewer(played: list[Curve], curves: list[Curve]) -> str:
    """In brackets how many trainings a number is of, if not of all."""
    return "" if len(played) == len(curves) else f" ({len(played)})"


def curve_of(document: dict[str, Any]) -> Curve:
    """Rows of the policy by N."""
    rows = [row for row in document["rows"] if row["label"].startswith("GEM")]
    return {row["settings"]["candidates"]: row for row in rows}


def budgets() -> tuple[list[list[str]], list[list[str]], str]:
    """Returns over N: head and means over trainings, a row for every training, what is to be added.

    Every ``*_budget.json`` is a training.
    """
    read = {path: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*_budget.json"))}
    shown = {path: document for path, document in read.items() if with_defaults(document)}
    curves = {path: curve_of(document) for path, document in shown.items()}
    counts = sorted(set().union(*curves.values()))
    head = ["data", "starts", *(f"N = {n}" for n in counts), *(f"{n} less 1" for n in GAINS)]
    alike = dict[tuple[str, str], dict[str, Curve]]()
    for path, document in shown.items():
        special = [word.replace("-", " ") for word in path.stem.split("_")[1:-1]]
        data = name_of(document["dataset_id"])
        starts = f"{document['episodes']} from {document['seed']}"
        alike.setdefault((data, starts), {})[", ".join([data, *special])] = curves[path]
    rows, means = list[list[str]](), list[list[str]]()
    added = tally(list(curves.values()))
    for (data, starts), named in alike.items():
        own = list(named.values())
        for full, curve in named.items():
            cells = [interval(curve[n]) + mark(curve[n]) if n in curve else "" for n in counts]
            rows.append([full, starts, *cells, *gains([curve])])
        if len(own) > 1:
            cells = [mean_of(own, n) for n in counts]
            means.append([f"{data}, mean of {len(own)}", starts, *cells, *gains(own)])
        if least := FALLS.get(data):
            told = f"Less N = 1 where neither has less than {least}, and how many starts have less:"
            added += [told, markdown(without_falls(named, least))]
    return [head, *means], rows, "\n\n".join(added)


def bodies() -> tuple[str, str]:
    """What goes into the README, and into the page of results."""
    records = json.loads((FOLDER / "iql.json").read_text())["records"]
    shown = [
        r
        for r in records
        if r["label"].startswith("as shipped")
        or (r["label"].startswith("defaults") and with_defaults(r))
    ]
    shown.sort(key=lambda r: (r["dataset_id"], r["updates"], r["iql"]["seed"]))
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in shown:
        groups.setdefault(record["dataset_id"], []).append(record)
    names = [f"IQL, {n} updates" for n in UPDATES]
    short = [["data", "cloning, mode", *names, "GEM's actor", "GEM"]]
    short += [short_line(dataset, own) for dataset, own in groups.items()]
    head = ["data", "IQL's updates", "GEM's, a phase", *COLUMNS.values()]
    means, trainings, counted = budgets()
    played = f"Returns, {shown[0]['episodes']} episodes a row, from seed {shown[0]['seed']}"
    parts = (
        [markdown(short), over_iql(groups), f"{played}. The budget:", markdown(means)],
        [
            markdown([head, *(line(r) for r in shown)]),
            over_iql(groups),
            over_itself(groups, "actor mode"),
            over_itself(groups, "cloning (behavior mode)"),
            f"{played}. The budget:",
            markdown([*means, *trainings]),
            counted,
        ],
    )
    short_page, long_page = ("\n\n".join(filter(None, own)) for own in parts)
    return with_legend(short_page), with_legend(long_page)


def main() -> None:
    """Write the tables into both pages."""
    for page, body in zip((README, RESULTS), bodies(), strict=True):
        fill(page, NAME, body)


if __name__ == "__main__":
    main()
