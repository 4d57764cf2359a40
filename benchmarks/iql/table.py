"""The README's table of trainings with every default, from the JSON of `compare.py` and `evaluate`.

    python benchmarks/iql/table.py

Reads benchmarks/results/iql.json (the records whose label begins with "defaults") and
hopper_budget.json. Run again it changes nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
START, END = "<!-- defaults: benchmarks/iql/table.py -->", "<!-- end of defaults -->"
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
    name = record["dataset_id"].removeprefix("gem/").removesuffix("-v0")
    return " | ".join([f"| {name}", f"{record['updates']}", *cells]) + " |"


def body() -> str:
    """Both tables."""
    records = json.loads((RESULTS / "iql.json").read_text())["records"]
    shown = [r for r in records if r["label"].startswith("defaults")]
    episodes = {r["episodes"] for r in shown}
    budget = json.loads((RESULTS / "hopper_budget.json").read_text())
    curve = {
        r["settings"]["candidates"]: interval(r)
        for r in budget["rows"]
        if r["label"].startswith("GEM")
    }
    return "\n".join(
        [
            f"| data | IQL's updates | {' | '.join(COLUMNS.values())} |",
            "| --- " * (2 + len(COLUMNS)) + "|",
            *(line(r) for r in sorted(shown, key=lambda r: (r["dataset_id"], r["updates"]))),
            "",
            f"Returns, {min(episodes)} episodes a row. The budget on hopper/medium-expert:",
            "",
            "| " + " | ".join(f"N = {n}" for n in curve) + " |",
            "| --- " * len(curve) + "|",
            "| " + " | ".join(curve.values()) + " |",
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
