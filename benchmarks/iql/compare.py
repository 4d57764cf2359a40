"""A GEM policy beside d3rlpy's IQL: the same data, the same starts, one table.

    python benchmarks/iql/compare.py POLICY IQL [IQL ...] [--episodes 30] [--json FILE]

POLICY is a name, path or hf:// address. IQL is the ACTOR.npz that `train.py` wrote for the same
dataset; or a number of updates, whose row is taken from a record of FILE of the same data and the
same seeds: its training is long, and another policy of ours does not change it. One that was played
when only the first episode of an environment was seeded by itself has other starts in the others,
drawn alike; the record says so (`iql_row_from`). Rows: the behavior model (cloning; its mode, and a
sample), IQL's mean action, the policy as shipped, and its actor without candidates. FILE
(benchmarks/results/iql.json) gets a record for every IQL, and keeps those of other datasets,
numbers of updates and labels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy import GEMPolicy
from gem_policy.environments import env_maker
from gem_policy.errors import CheckpointError, ConfigError
from gem_policy.evaluate import ReportRow, rollout
from gem_policy.mixture_predictor import MixturePredictor
from gem_policy.normalize import ActionScaler
from gem_policy.predictor import Predictor
from gem_policy.report import STARTS, Player, players, report_document

IQL = "d3rlpy IQL"


class ArrayActor(Predictor):
    """A deterministic actor as plain arrays: linear layers, ReLU between them, tanh at the end.

    Args:
        arrays: ``weight_i`` of shape (out, in) and ``bias_i`` for every layer i, float32.
        policy: Whose spaces and device to act in. Its observations come in environment units.

    Raises:
        CheckpointError: The layers do not fit each other or the spaces.
    """

    def __init__(self, arrays: dict[str, Any], policy: GEMPolicy) -> None:
        super().__init__(policy.observation_space, policy.action_space, policy.device)
        count = sum(name.startswith("weight_") for name in arrays)
        self._layers = [
            (self._tensor(arrays, f"weight_{i}"), self._tensor(arrays, f"bias_{i}"))
            for i in range(count)
        ]
        widths = [self._reader.size, *(len(bias) for _, bias in self._layers)]
        expected = list(zip(widths[1:], widths[:-1], strict=True))
        shapes = [tuple(weight.shape) for weight, _ in self._layers]
        size = policy.action_space.shape[0]
        if not count or shapes != expected or widths[-1] != size:
            raise CheckpointError(
                f"The actor's weights have the shapes {shapes}; observations of size "
                f"{widths[0]} and actions of size {size} need others. Export and train on the "
                "dataset that the policy was trained on."
            )
        self._scaler = ActionScaler(policy.scaler.low, policy.scaler.high)

    def _tensor(self, arrays: dict[str, Any], name: str) -> Tensor:
        if name not in arrays:
            raise CheckpointError(f"The actor's file has no {name}; write it again with train.py.")
        return torch.as_tensor(np.asarray(arrays[name], np.float32), device=self.device)

    def act(
        self, rows: Float[Tensor, "batch obs"], generator: torch.Generator | None
    ) -> Float[Tensor, "batch action"]:
        """The mean action, with or without a generator: d3rlpy's ``predict`` knows no other."""
        x = rows
        for weight, bias in self._layers[:-1]:
            x = torch.relu(torch.nn.functional.linear(x, weight, bias))
        weight, bias = self._layers[-1]
        x = torch.tanh(torch.nn.functional.linear(x, weight, bias))
        return self._scaler.invert(x)


def read_actor(path: Path, policy: GEMPolicy) -> tuple[ArrayActor, dict[str, Any]]:
    """An exported actor, and what its file says about how it came about."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    about: dict[str, Any] = json.loads(str(arrays.pop("about")))
    return ArrayActor(arrays, policy), about


def same_data(policy: GEMPolicy, about: dict[str, Any]) -> None:
    """Raise unless both were trained on the same episodes, ending their returns alike.

    Raises:
        ConfigError: They were not.
    """
    train = policy.provenance["train"]
    ours = {
        "dataset": policy.provenance["dataset_id"],
        "split_seed": train["seed"],
        "holdout": train["holdout"],
        "terminal_reward": train["terminal_reward"],
    }
    other = {key: (about[key], ours[key]) for key in ours if about[key] != ours[key]}
    if other:
        raise ConfigError(f"IQL and the policy were trained on other data (IQL, policy): {other}.")


def rows_to_play(policy: GEMPolicy) -> list[Player]:
    """Cloning twice, the policy with its own settings, its actor alone."""
    cloning = MixturePredictor(policy, "behavior")
    first = players(
        policy,
        candidates=None,
        support_weights=None,
        kappas=None,
        baselines=False,
        compare={},
    )
    return [
        Player("cloning (behavior mode)", True, {}, lambda: cloning),
        Player("cloning (behavior sample)", False, {}, lambda: cloning),
        *first,
        Player("actor mode", True, {}, lambda: MixturePredictor(policy, "actor")),
    ]


def normalized(document: dict[str, Any], low: float | None, high: float | None) -> None:
    """Add returns in percent of the way between the dataset's reference scores, if it has any."""
    if low is None or high is None:
        return
    document["reference"] = {"min": low, "max": high}
    for row in document["rows"]:
        score = row["summary"]["return"]
        row["summary"]["normalized_percent"] = {
            key: 100 * (value - low) / (high - low) for key, value in score.items()
        }


def played_before(
    path: Path, policy: GEMPolicy, updates: int, episodes: int, seed: int, envs: int
) -> dict[str, Any]:
    """A record of IQL on the policy's data, with the same seeds; rather of the same starts.

    Raises:
        ConfigError: There is none.
    """
    records = json.loads(path.read_text())["records"]
    asked = (policy.provenance["dataset_id"], updates, episodes, seed, envs)
    keys = ("dataset_id", "updates", "episodes", "seed", "envs")
    found = [r for r in records if tuple(r.get(k) for k in keys) == asked]
    if not found:
        raise ConfigError(f"{path} has no record of {dict(zip(keys, asked, strict=True))}.")
    split = policy.provenance["train"]["seed"]
    record: dict[str, Any] = max(
        found, key=lambda r: (r["iql"]["split_seed"] == split, r.get("starts") == STARTS)
    )
    same_data(policy, record["iql"])
    return record


def merge(record: dict[str, Any], path: Path) -> None:
    """Put the record in place of an earlier one of the same dataset, updates and policy label."""
    keys = ("dataset_id", "updates", "label")
    document = json.loads(path.read_text()) if path.is_file() else {"records": []}
    kept = [r for r in document["records"] if any(r[k] != record[k] for k in keys)]
    records = sorted([*kept, record], key=lambda r: tuple(str(r[k]) for k in keys))
    path.write_text(json.dumps({"records": records}, indent=1) + "\n")


def played(
    policy: GEMPolicy, plan: list[Player], options: argparse.Namespace
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Play, print; a report without rows, and the rows."""
    rows = []
    for player in plan:
        records = rollout(
            player.enter(),
            env_maker(policy),
            episodes=options.episodes,
            envs=options.envs,
            seed=options.seed,
            deterministic=player.deterministic,
            batched=options.batched,
        )
        rows.append(ReportRow(player.label, player.settings, records))
        found = rows[-1].summary()["return"]
        print(
            f"{player.label:28} return {found['mean']:9.1f} [{found['low']:.1f}, "
            f"{found['high']:.1f}]   steps {np.mean(records.lengths):6.1f}   decision "
            f"{records.decision_us:.0f} us",
            flush=True,
        )
    document = report_document(
        policy,
        rows,
        episodes=options.episodes,
        seed=options.seed,
        envs=options.envs,
        batched=options.batched,
    )
    return document, document.pop("rows")


def row_of_iql(
    source: str, policy: GEMPolicy, options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """IQL's row, and what a record says of how it came about."""
    if source.isdigit():
        before = played_before(
            options.json, policy, int(source), options.episodes, options.seed, options.envs
        )
        row = next(r for r in before["rows"] if r["label"] == IQL)
        kept = {k: before.get(k) for k in ("label", "machine", "batched", "starts")}
        # A row of before reports said how they seed has no starts.
        origin = {"starts": None, **before.get("iql_row_from", kept)}
        return row, {"iql": before["iql"], "iql_row_from": origin}
    actor, about = read_actor(Path(source), policy)
    same_data(policy, about)
    _, rows = played(policy, [Player(IQL, True, {}, lambda: actor)], options)
    return rows[0], {"iql": about}


def main() -> None:
    """Play, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy")
    parser.add_argument("iql", nargs="+", metavar="IQL")
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--envs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", default="", help="distinguishes records of several policies")
    parser.add_argument(
        "--batched", action="store_true", help="decide for all environments at once"
    )
    parser.add_argument("--json", type=Path, help="benchmarks/results/iql.json, for example")
    options = parser.parse_args()
    if options.json is None and any(source.isdigit() for source in options.iql):
        parser.error("rows of earlier records need --json FILE")
    torch.set_num_threads(1)
    policy = GEMPolicy.load(options.policy, device="cpu")
    others = [row_of_iql(source, policy, options) for source in options.iql]
    document, rows = played(policy, rows_to_play(policy), options)
    train = policy.provenance["train"]
    for row, told in others:
        record = {
            "updates": told["iql"]["updates"],
            "label": options.label,
            **told,
            "gem_updates": {k: v for k, v in train.items() if k.endswith("_updates")},
            **document,
            "rows": [*rows[:2], row, *rows[2:]],
        }
        normalized(
            record, policy.provenance.get("reference_min"), policy.provenance.get("reference_max")
        )
        if options.json:
            merge(record, options.json)


if __name__ == "__main__":
    main()
