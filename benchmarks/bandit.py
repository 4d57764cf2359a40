"""Problems with a known answer: contextual bandits with several good actions, the best one rare.

    python benchmarks/bandit.py [--json FILE] [--picture FILE] [--runs FOLDER] [--dimensions 1 2 8]

In 1, 2 and 8 action dimensions (`tests/bandits.py` has the problem): a Minari dataset is written,
the trainer makes a policy of it with several seeds, and on fresh contexts it is counted where the
choices lie, for several budgets N and support weights lambda. K = 1 is the same run with an actor
of one component. FOLDER keeps the runs: a second call with it goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from actor_phase import FinishedRun

from gem_policy import GEMPolicy
from gem_policy import checkpoint as files
from gem_policy.evaluate import machine
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.minari_root import datasets_in
from gem_policy.training.trainer import fit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the problem is shared with the tests

from bandits import PROBLEMS, Bandit  # noqa: E402

DIMENSIONS = (1, 2, 8)
SEEDS = (0, 1, 2)
EPISODES = 200  # of 100 steps
CONTEXTS = 1000
BUDGETS = (1, 4, 16, 64, 256)
WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
DEPLOYED = 64
RARE = 0.5  # lambda that does not prefer the frequent mode to the best one
# Not the defaults: the abstract's bound, and every mode a candidate.
ADVISED = {"bound": "lower", "kappa": 1.0, "all_modes": True}
# Defaults but for the discount, the number of updates and, as these are few, larger steps. An
# episode is a hundred contexts drawn at random: its return is chance, so episodes weigh the same.
TRAIN = TrainConfig(
    behavior_updates=1000,
    value_updates=800,
    critic_updates=1500,
    actor_updates=1000,
    critic_lr=2e-3,
    policy_lr=3e-3,
    discount=0.0,
    episode_temperature=None,
)
# Small, because the problems are; components and members as by default. A context leads nowhere:
# there is nothing to look ahead at.
NETWORK = {
    "actor_hidden": (64, 64),
    "behavior_hidden": (64, 64),
    "critic_hidden": (64, 64),
    "critic_lookahead": False,
}
SINGLE = "single.safetensors"
ROWS = 100  # contexts decided at once
# What the picture shows: label, matplotlib's style, whose choice, its settings.
CHOOSERS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("GEM as it comes", "sC1", "gem", {"candidates": DEPLOYED}),
    (
        f"GEM, λ = {RARE:g}",
        "oC0",
        "gem",
        {**ADVISED, "candidates": DEPLOYED, "support_weight": RARE},
    ),
    ("K = 1, its mean", "xC3", "single", {"candidates": 1}),
)
SHOWN = 2  # the training whose share at the best mode lies between those of the other two
SHADES = {"cmap": "Greens", "vmin": 0, "vmax": 1.3, "rasterized": True}


def make_dataset(bandit: Bandit, runs: Path) -> Dataset:
    """The dataset of a problem, the same at every call."""
    name = f"bandit/{bandit.action_size}d-v0"
    with tempfile.TemporaryDirectory(dir=runs) as folder, datasets_in(Path(folder)):
        return bandit.dataset(name, EPISODES, seed=0)


def train(dataset: Dataset, seed: int, folder: Path) -> tuple[GEMPolicy, GEMPolicy]:
    """GEM, and the same run with an actor of one component."""
    fit(dataset, folder, dataclasses.replace(TRAIN, seed=seed), network=NETWORK)
    single = folder / SINGLE
    if not single.exists():
        run = FinishedRun(folder, dataset)
        replay = run.weighed(run.prepared.training, run.config)
        actor = run.train(replay, run.config, actor_components=1)
        files.save(run.with_actor(actor, actor_components=1), single)
    return loaded(folder)


def loaded(folder: Path) -> tuple[GEMPolicy, GEMPolicy]:
    """What `train` left in a folder."""
    single = folder / SINGLE
    return GEMPolicy.load(folder, device="cpu"), GEMPolicy.load(single, device="cpu")


def choices(policy: GEMPolicy, contexts: Any, **selection: Any) -> Any:
    """Actions, (rows, action_size), under changes to the settings that the policy came with."""
    policy.selection = policy.config.selection.replace(**selection)
    parts = torch.from_numpy(contexts).split(ROWS)
    return torch.cat([policy.decide(rows).action for rows in parts]).numpy()


def judged(bandit: Bandit, contexts: Any, actions: Any) -> dict[str, float]:
    """Shares at a good and at the best mode, and the reward; the best possible reward is 1."""
    place = bandit.places(contexts, actions)
    return {
        "good": float((place >= 0).mean()),
        "best": float((place == len(bandit.heights) - 1).mean()),
        "reward": float(bandit.rewards(contexts, actions).mean()),
    }


def cloned(policy: GEMPolicy, contexts: Any) -> Any:
    """The mean of the behavior model's heaviest component."""
    with torch.no_grad():
        mode = policy.behavior_mixture(torch.from_numpy(contexts)).mode()
    return policy.scaler.invert(mode).numpy()


def rows_of(
    bandit: Bandit, contexts: Any, gem: GEMPolicy, single: GEMPolicy
) -> dict[str, dict[str, float]]:
    """Every row of the table for one training."""

    def row(policy: GEMPolicy, count: int, **selection: Any) -> dict[str, float]:
        return judged(bandit, contexts, choices(policy, contexts, candidates=count, **selection))

    def advised(policy: GEMPolicy, count: int, weight: float) -> dict[str, float]:
        return row(policy, count, support_weight=weight, **ADVISED)

    table = {f"as it comes, N={n}": row(gem, n) for n in BUDGETS}
    table |= {f"GEM N={DEPLOYED} lambda={w:g}": advised(gem, DEPLOYED, w) for w in WEIGHTS}
    table |= {f"GEM N={n} lambda={RARE:g}": advised(gem, n, RARE) for n in BUDGETS}
    table["K=1 N=1 (its mean)"] = row(single, 1)
    table[f"K=1 N={DEPLOYED} lambda={RARE:g}"] = advised(single, DEPLOYED, RARE)
    table["cloning (heaviest mode)"] = judged(bandit, contexts, cloned(gem, contexts))
    return table


def summed_up(tables: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Mean over trainings, and the training that is worst."""
    return {
        label: {
            key: {
                "mean": float(np.mean([t[label][key] for t in tables])),
                "worst": min(t[label][key] for t in tables),
            }
            for key in tables[0][label]
        }
        for label in tables[0]
    }


def kept(path: Path | None) -> dict[str, Any]:
    """What a JSON file has of dimensions measured before."""
    if path is None or not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())["dimensions"]
    return found


def picture(runs: Path, path: Path) -> None:
    """What the data look like, and where GEM and K = 1 choose, in one and in two dimensions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    draw_line(*panels[:2], *loaded(runs / f"1d-{SHOWN}"))
    draw_plane(panels[2], *loaded(runs / f"2d-{SHOWN}"))
    panels[1].legend(fontsize=7, loc="lower left")
    panels[2].legend(fontsize=7, loc="upper left", markerscale=0.6)
    figure.savefig(path, dpi=72)
    plt.close(figure)


def draw_line(left: Any, middle: Any, gem: GEMPolicy, single: GEMPolicy) -> None:
    """One dimension over the context: the data, and what is chosen."""
    bandit = PROBLEMS[1]
    x = np.linspace(-1, 1, 161, dtype=np.float32)[:, None]
    y = np.linspace(-1, 1, 161)
    worth = np.stack([bandit.rewards(x, np.full((len(x), 1), v)) for v in y])
    for axes in (left, middle):
        axes.pcolormesh(x[:, 0], y, worth, **SHADES)
        axes.set(xlabel="context", ylabel="action", ylim=(-1, 1))
    contexts, actions, _ = bandit.data(1500, np.random.default_rng(1))
    left.plot(contexts, actions, ".", color="black", markersize=1.5)
    left.set_title("1 dimension: reward (green) and data")
    at = x[::4]
    for label, style, policy, selection in CHOOSERS:
        chosen = choices(gem if policy == "gem" else single, at, **selection)
        middle.plot(at, chosen, style, markersize=5, markerfacecolor="none", label=label)
    middle.set_title("1 dimension: what is chosen")


def draw_plane(axes: Any, gem: GEMPolicy, single: GEMPolicy) -> None:
    """Two dimensions, one context: data, candidates, and what is chosen."""
    bandit, rng = PROBLEMS[2], np.random.default_rng(1)
    y = np.linspace(-1, 1, 161)
    context = np.array([[0.2]], dtype=np.float32)
    grid = np.stack(np.meshgrid(y, y), -1).reshape(-1, 2)
    worth = bandit.rewards(np.repeat(context, len(grid), 0), grid).reshape(len(y), len(y))
    axes.pcolormesh(y, y, worth, **SHADES)
    centers = bandit.modes(context)[0][rng.choice(3, 300, p=bandit.shares)]
    data = centers + bandit.scatter * rng.standard_normal(centers.shape)
    axes.plot(*data.T, ".", color="black", markersize=1.5, label="data of this context")
    proposed = gem.decide(torch.from_numpy(context), count=DEPLOYED).candidates.actions[0]
    axes.plot(*proposed.numpy().T, ".", color="C4", markersize=4, label="GEM's candidates")
    for label, style, policy, selection in CHOOSERS:
        chosen = choices(gem if policy == "gem" else single, context, **selection)[0]
        axes.plot(
            *chosen, style, markersize=10, markeredgewidth=2, markerfacecolor="none", label=label
        )
    axes.set(xlabel="action 1", ylabel="action 2", xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
    axes.set_title("2 dimensions: one context")


def main() -> None:
    """Train, measure, print, write JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimensions", type=int, nargs="*", default=DIMENSIONS)
    parser.add_argument("--json", type=Path, help="keeps what it has of other dimensions")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--runs", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        runs = options.runs or Path(folder)
        runs.mkdir(parents=True, exist_ok=True)
        document: dict[str, Any] = {
            "machine": machine(),
            "train": dataclasses.asdict(TRAIN),
            "network": NETWORK,
            "problems": {d: dataclasses.asdict(PROBLEMS[d]) for d in DIMENSIONS},
            "steps": 100 * EPISODES,
            "contexts": CONTEXTS,
            "seeds": SEEDS,
            "dimensions": kept(options.json),
        }
        for dimension in options.dimensions:
            bandit = PROBLEMS[dimension]
            dataset = make_dataset(bandit, runs)
            tables = []
            for seed in SEEDS:
                policies = train(dataset, seed, runs / f"{dimension}d-{seed}")
                contexts = bandit.contexts(CONTEXTS, np.random.default_rng((7, seed)))
                tables.append(rows_of(bandit, contexts, *policies))
                print(f"{dimension} dimensions, seed {seed}", flush=True)
            summary = summed_up(tables)
            document["dimensions"][str(dimension)] = {"summary": summary, "trainings": tables}
            for label, row in summary.items():
                told = "   ".join(f"{k} {v['mean']:.3f} ({v['worst']:.3f})" for k, v in row.items())
                print(f"  {label:26} {told}", flush=True)
        if options.picture:
            picture(runs, options.picture)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
