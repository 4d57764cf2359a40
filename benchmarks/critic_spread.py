"""Do the critics disagree more off the data than on it? Held-out episodes, given policies.

    python benchmarks/critic_spread.py POLICY [POLICY ...] [--json FILE]

Each POLICY is a name, path or hf:// address; its dataset has to be there. The standard deviation
over the critics (divided by E, in the critics' units) at

- data: the actions of the training run's held-out episodes, in their states;
- dealt: the same actions, dealt out to other states at random: as long as the data's, but not what
  the data do there;
- dealt, unsupported: those of them that are less likely than 99 % of the data's own actions;
- uniform: actions uniform in the box, which may be shorter than the data's.

Means with 95 % bootstrap intervals over episodes, also of the ratios to the first row, and the
actions' mean length in normalized units. FILE keeps its rows of other datasets.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap

from gem_policy import GEMPolicy
from gem_policy.evaluate import machine
from gem_policy.training.dataset import Dataset, load
from gem_policy.training.preparation import split

ROWS = 4096  # states judged at once
RARE = 1.0  # percent of the data's own actions that are less likely than an unsupported one


def held_out(policy: GEMPolicy) -> Dataset:
    """The held-out episodes of the training run, from the settings that the checkpoint holds."""
    train = policy.provenance["train"]
    data = load(policy.provenance["dataset_id"])
    return split(data, train["holdout"], train["seed"])[1]


def judged(policy: GEMPolicy, data: Dataset) -> dict[str, Any]:
    """Of data, dealt and uniform actions, in this order: spread, percentile and length."""
    moves = data.transitions
    generator = torch.Generator().manual_seed(0)
    low, high = (torch.as_tensor(x) for x in (policy.action_space.low, policy.action_space.high))
    drawn = torch.rand(moves.actions.shape, generator=generator) * (high - low) + low
    order = torch.randperm(len(moves), generator=generator)
    actions = torch.stack([moves.actions, moves.actions[order], drawn], 1)
    found = [
        policy.assess(part.observations, actions[numbers])
        for numbers in torch.arange(len(moves)).split(ROWS)
        for part in [moves.batch(numbers)]
    ]
    return {
        "spread": torch.cat([x.q_std for x in found]).cpu().numpy(),
        "percentile": torch.cat([x.percentile for x in found]).cpu().numpy(),
        "length": policy.scaler.apply(actions).norm(dim=-1).numpy(),
        "episode": moves.episode.numpy(),
    }


def per_episode(values: Any, chosen: Any, episode: Any) -> tuple[Any, Any]:
    """Sum of the chosen values, and their count, of every episode."""
    return np.bincount(episode, values * chosen), np.bincount(episode, chosen)


def interval(statistic: Any, samples: tuple[Any, ...]) -> dict[str, float]:
    """A statistic of per-episode sums and counts with its 95 % bootstrap interval."""
    found = bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = found.confidence_interval
    return {"mean": float(statistic(*samples)), "low": float(low), "high": float(high)}


def mean_of(total: Any, count: Any, axis: int = -1) -> Any:
    """Mean over transitions."""
    return total.sum(axis) / count.sum(axis)


def ratio_of(total: Any, count: Any, own: Any, owned: Any, axis: int = -1) -> Any:
    """Mean of the one over the mean of the other."""
    return mean_of(total, count, axis) / mean_of(own, owned, axis)


def report(policy: GEMPolicy) -> dict[str, Any]:
    """Every row of one policy."""
    found = judged(policy, held_out(policy))
    episode, spread = found["episode"], found["spread"]
    every = np.ones(len(episode), bool)
    chosen = {
        "data": (0, every),
        "dealt": (1, every),
        "dealt, unsupported": (1, found["percentile"][:, 1] < RARE),
        "uniform": (2, every),
    }
    own = per_episode(spread[:, 0], every, episode)
    rows = {}
    for name, (column, mask) in chosen.items():
        samples = per_episode(spread[:, column], mask, episode)
        rows[name] = {
            "share_percent": 100 * float(mask.mean()),
            "length": float(found["length"][mask, column].mean()),
            "spread": interval(mean_of, samples),
            "ratio": interval(ratio_of, (*samples, *own)),
        }
    return {
        "dataset_id": policy.provenance["dataset_id"],
        "lookahead": policy.config.network.critic_lookahead,
        "transitions": len(episode),
        "episodes": int(episode.max()) + 1,
        "actions": rows,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policies", nargs="+")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for source in options.policies:
        rows.append(report(GEMPolicy.load(source, device="cpu")))
        for name, row in rows[-1]["actions"].items():
            ratio = row["ratio"]
            print(
                f"{rows[-1]['dataset_id']:32} {name:20} {row['share_percent']:5.1f} %  length "
                f"{row['length']:.2f}  spread {row['spread']['mean']:.3f}  ratio "
                f"{ratio['mean']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
                flush=True,
            )
    if options.json:
        new = {row["dataset_id"] for row in rows}
        before = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
        rows = [row for row in before if row["dataset_id"] not in new] + rows
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
