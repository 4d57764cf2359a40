"""Everything that states a result, written from the JSON that `gem-policy evaluate --json` wrote.

    python benchmarks/cards.py

For every folder of `pretrained/`: the card ``README.md``, and the summary inside the checkpoint;
then all tables in `benchmarks/RESULTS.md`, and a short one in the repository's README. Run again it
changes nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blocks import README, RESULTS, ROOT, fill, markdown

from gem_policy import checkpoint as files

RECIPE = "pointmaze"  # of `gem_policy.pretrained`
NAME = "results: benchmarks/cards.py"
SHORT: dict[str, tuple[str, int, float]] = {
    "success, %": ("success", 0, 100),
    "steps to the goal": ("steps", 1, 1),
    "return": ("return", 1, 1),
}
BUDGETS = (4, 32, 256)


def interval(summary: dict[str, Any], key: str, digits: int, factor: float = 1.0) -> str:
    """``mean [low, high]`` of one quantity of a row."""
    x = {name: value * factor for name, value in summary[key].items()}
    return f"{x['mean']:.{digits}f} [{x['low']:.{digits}f}, {x['high']:.{digits}f}]"


def table(document: dict[str, Any]) -> str:
    """The rows of an evaluation as a Markdown table."""
    rows = [["what acts", "success, %", "steps to the goal", "return", "decision, ms"]]
    for row in document["rows"]:
        s = row["summary"]
        values = interval(s, "success", 0, 100), interval(s, "steps", 1), interval(s, "return", 1)
        rows.append([row["label"], *values, f"{s['decision_us'] / 1000:.2f}"])
    return markdown(rows)


def short_rows(name: str, document: dict[str, Any]) -> list[list[str]]:
    """Cloning, the actor alone and three budgets at the shipped lambda: a row for each measure."""
    ending = document["shipped"].split()[-1]
    labels = ["cloning (behavior sample)", "actor mode", *(f"GEM N={n} {ending}" for n in BUDGETS)]
    summaries = {row["label"]: row["summary"] for row in document["rows"]}
    return [
        [name, measure, *(interval(summaries[label], *how) for label in labels)]
        for measure, how in SHORT.items()
    ]


def differences(document: dict[str, Any], ending: str) -> str:
    """Every budget less the next smaller one, on the same starts, as a Markdown table.

    Args:
        document: An evaluation.
        ending: How the labels of the rows to compare end.
    """
    rows = [["N", "success, %", "steps", "return"]]
    before: dict[str, Any] = {}
    for row in document["rows"]:
        if not (row["label"].startswith("GEM ") and row["label"].endswith(ending)):
            continue
        played = row["episodes"]
        now = {
            "N": row["settings"]["candidates"],
            "success": 100 * np.array(played["success"], float),
            "steps": np.array(played["steps_to_success"], float),
            "return": np.array(played["return"], float),
        }
        if before:
            cells = [_difference(now[key] - before[key]) for key in list(now)[1:]]
            rows.append([f"{before['N']} to {now['N']}", *cells])
        before = now
    return markdown(rows)


def _difference(values: npt.NDArray[np.float64]) -> str:
    """``mean +- standard error``."""
    return f"{values.mean():+.1f} ± {values.std(ddof=1) / len(values) ** 0.5:.1f}"


def normalized(document: dict[str, Any], provenance: dict[str, Any], shipped: str) -> str:
    """A sentence on the shipped setting's return, normalized by the dataset's references."""
    low, high = provenance["reference_min"], provenance["reference_max"]
    rows = [row for row in document["rows"] if row["label"] == f"GEM {shipped}"]
    if not rows:
        return f"The shipped setting ({shipped}) has not been scored in this table yet."
    mean = rows[0]["summary"]["return"]["mean"]
    return f"""Normalized return of the shipped setting ({shipped}):
{100 * (mean - low) / (high - low):.1f} % of the way from the random policy ({low:.1f}) to the
noise-free planner ({high:.1f}), both played here, 100 episodes each."""


def disagreement(dataset_id: str) -> str:
    """How much the critics disagree off the data, by `benchmarks/critic_spread.py`."""
    measured = json.loads((ROOT / "benchmarks" / "results" / "critic_spread.json").read_text())
    row = next(r for r in measured["rows"] if r["dataset_id"] == dataset_id)["actions"]
    dealt, rare = (interval(row[x], "ratio", 2) for x in ("dealt", "dealt, unsupported"))
    return f"""On held-out episodes the critics disagree {dealt} times as much at the
data's actions dealt out to other states as where the data do them, and {rare} times
at those of them that the behavior model finds less likely than 99 % of the data."""


def settings(values: dict[str, Any]) -> str:
    """Settings as one line."""
    return ", ".join(f"`{k}={json.dumps(v)}`" for k, v in sorted(values.items()))


def changed(selection: dict[str, Any]) -> str:
    """The arguments that make the recipe's selection settings these."""
    recipe = json.loads((ROOT / "pretrained" / f"{RECIPE}.json").read_text())
    differ = {k: v for k, v in sorted(selection.items()) if k in recipe and recipe[k] != v}
    return "".join(f" --set {k}={json.dumps(v)}" for k, v in differ.items())


def starts(document: dict[str, Any]) -> str:
    """How the episodes of a report start."""
    told = f"environment i of {document['envs']} seeded with\n{document['seed']} + i"
    return (
        document["starts"].replace("seed", str(document["seed"])) if "starts" in document else told
    )


def card(name: str, loaded: files.Checkpoint, document: dict[str, Any]) -> str:
    """The card of a policy."""
    p, spec = loaded.provenance, document["environment"]
    selection = files.to_document(loaded)["selection"]
    shipped = document["shipped"]
    return f"""# {name}

A GEM policy for `{spec["id"]}` ({spec["max_episode_steps"]} steps an episode, `{
        json.dumps({k: v for k, v in spec["kwargs"].items() if k != "maze_map"})
    }`, fixed goal, any start).

```python
from gem_policy import GEMPolicy

policy = GEMPolicy.load("{name}")
```

## Data and training
- Data: `{p["dataset_id"]}`, {p["dataset_episodes"]} episodes, {p["dataset_steps"]} steps, made by
  `gem-policy datasets make {p["dataset_id"]}` (seed {p["dataset_recipe"].get("seed")}). These are
  not the published D4RL data, only made by the same recipe: do not compare with published tables.
- Training: `gem-policy train {p["dataset_id"]} --config {RECIPE}{changed(selection)} --out DIR`,
  seed {p["train"]["seed"]}; {settings(p["train"])}
- Versions: {settings(p["versions"])}
- Default selection: {settings(selection)}

## Results
{document["episodes"]} episodes per row, {
        starts(document)
    }; mean with 95 % bootstrap interval. No setting was chosen on these seeds.
{
        "Decided for all environments at once, which is `predict` up to rounding. "
        * document.get("batched", False)
    }
Steps count to the first success, or the whole episode where there was none. The return counts the
steps spent at the goal. One training seed: the intervals are over episodes, not over trainings.

{table(document)}

{normalized(document, dict(p), shipped)}

More candidates, start by start at the shipped lambda: mean difference ± its standard error; fewer
steps are better, and more return.

{differences(document, shipped.split()[-1])}

## Limits
For this maze, this ball and this goal region; the policy has seen no other map. What it does with
observations unlike the data is not known: `policy.explain(obs)` shows how well the data support an
action. {disagreement(p["dataset_id"])}
It is lambda that holds choices to the data: in trainings of before, and with another
`proposal_scale`, a few starts on Medium and Large ended in traps where it was small
(`benchmarks/TRIED.md`).
At and around the goal the policy follows values that no data show. License: MIT.
"""


def measured() -> dict[Path, tuple[files.Checkpoint, dict[str, Any]]]:
    """Every policy that ships, by its folder, and its evaluation, with the label of its setting."""
    found = {}
    for folder in sorted((ROOT / "pretrained").iterdir()):
        weights, results = folder / files.WEIGHTS_FILE, folder / "evaluation.json"
        if weights.is_file() and results.is_file():
            loaded = files.load(weights)
            own = loaded.config.selection
            shipped = f"N={own.candidates} lambda={own.support_weight:g}"
            found[folder] = (loaded, {**json.loads(results.read_text()), "shipped": shipped})
    return found


def bodies() -> tuple[str, str]:
    """What goes into the README, and into the page of results."""
    short = [["policy", "", "cloning", "actor's mode", *(f"GEM, N = {n}" for n in BUDGETS)]]
    parts = []
    for folder, (_, document) in measured().items():
        short += short_rows(folder.name, document)
        # The card has the rows without support too.
        rows = [row for row in document["rows"] if not row["label"].endswith("lambda=0")]
        own = table({**document, "rows": rows})
        parts.append(f"**{folder.name}**, {document['episodes']} episodes\n\n{own}")
    return markdown(short), "\n\n".join(parts)


def main() -> None:
    """Write cards, checkpoint summaries and the tables of both pages."""
    for folder, (loaded, document) in measured().items():
        rows = [{k: row[k] for k in ("label", "settings", "summary")} for row in document["rows"]]
        evaluation = {k: document[k] for k in ("episodes", "seed", "envs")} | {"rows": rows}
        if loaded.provenance.get("evaluation") != evaluation:
            provenance = {**loaded.provenance, "evaluation": evaluation}
            changed_file = files.Checkpoint(loaded.config, loaded.tensors, provenance)
            files.save(changed_file, folder / files.WEIGHTS_FILE)
        (folder / "README.md").write_text(card(folder.name, loaded, document))
    for page, body in zip((README, RESULTS), bodies(), strict=True):
        fill(page, NAME, body)


if __name__ == "__main__":
    main()
