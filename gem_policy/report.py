"""Who plays in an evaluation, and the document that its numbers are kept in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gem_policy.errors import ConfigError
from gem_policy.evaluate import CONFIDENCE, RESAMPLES, ReportRow, machine
from gem_policy.mixture_predictor import MixturePredictor
from gem_policy.policy import GEMPolicy
from gem_policy.predictor import Predictor


@dataclass(frozen=True)
class Player:
    """One row to play.

    Attributes:
        label: Name of the row.
        deterministic: How ``predict`` is called.
        settings: What to record about it.
        enter: Gives the predictor, with its settings in force.
    """

    label: str
    deterministic: bool
    settings: Mapping[str, Any]
    enter: Callable[[], Predictor]


def players(
    policy: GEMPolicy,
    *,
    candidates: Sequence[int] | None,
    support_weights: Sequence[float] | None,
    kappas: Sequence[float] | None,
    baselines: bool,
    compare: Mapping[str, GEMPolicy],
) -> list[Player]:
    """The rows of an evaluation: baselines, other policies, then every combination of settings.

    Args:
        policy: The policy under evaluation.
        candidates: Budgets; None for the policy's own, likewise below.
        support_weights: Values of lambda.
        kappas: Values of kappa.
        baselines: Also the behavior model (sampled: cloning, and its mode) and the actor's mode.
        compare: Other policies by label, as they are.
    """
    own = policy.selection
    rows: list[Player] = []
    if baselines:
        behavior, actor = MixturePredictor(policy, "behavior"), MixturePredictor(policy, "actor")
        rows += [
            Player("cloning (behavior sample)", False, {}, _constant(behavior)),
            Player("behavior mode", True, {}, _constant(behavior)),
            Player("actor mode", True, {}, _constant(actor)),
            Player("actor sample", False, {}, _constant(actor)),
        ]
    for label, other in compare.items():
        rows.append(Player(label, True, asdict(other.selection), _constant(other)))
    grid = itertools.product(
        kappas or [own.kappa],
        support_weights or [own.support_weight],
        candidates or [own.candidates],
    )
    for kappa, weight, count in grid:
        selection = own.replace(kappa=kappa, support_weight=weight, candidates=count)
        label = f"GEM N={count} lambda={weight:g}"
        if kappas:
            label += f" kappa={kappa:g}"

        def enter(chosen: Any = selection) -> Predictor:
            policy.selection = chosen
            return policy

        rows.append(Player(label, True, asdict(selection), enter))
    return rows


def _constant(predictor: Predictor) -> Callable[[], Predictor]:
    """A function that gives the predictor, freshly seeded."""

    def enter() -> Predictor:
        predictor.set_random_seed(0)
        return predictor

    return enter


def report_document(
    policy: GEMPolicy,
    rows: Sequence[ReportRow],
    *,
    episodes: int,
    seed: int,
    envs: int,
    batched: bool = False,
) -> dict[str, Any]:
    """Everything about an evaluation as one JSON object, episode by episode."""
    return {
        "dataset_id": policy.provenance.get("dataset_id"),
        "train": policy.provenance.get("train"),
        "network": asdict(policy.config.network),
        "gain_unit": policy.config.gain_unit,
        "environment": policy.provenance.get("eval_env_spec"),
        "episodes": episodes,
        "seed": seed,
        "envs": envs,
        "batched": batched,
        "cuda_graph": policy.cuda_graph,
        "interval": {"method": "percentile bootstrap", "level": CONFIDENCE, "resamples": RESAMPLES},
        "machine": machine(),
        "rows": [
            {
                "label": row.label,
                "settings": dict(row.settings),
                "summary": row.summary(),
                "episodes": {
                    "return": row.records.returns,
                    "success": row.records.successes,
                    "steps_to_success": row.records.steps_to_success,
                },
            }
            for row in rows
        ],
    }


def read_document(path: Path) -> dict[str, Any] | None:
    """A report written before, or None if there is none.

    Raises:
        ConfigError: The file is no report.
    """
    if not path.is_file():
        return None
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        document["rows"], document["episodes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no report of `gem-policy evaluate`: {error!r}.") from error
    return document


def write_document(document: dict[str, Any], path: Path, before: Mapping[str, Any] | None) -> None:
    """Write a report, after the rows of an earlier one of the same evaluation.

    Raises:
        ConfigError: The earlier report was played otherwise.
    """
    if before is not None:
        keys = ("dataset_id", "environment", "episodes", "seed", "envs", "batched")
        other = [key for key in keys if before.get(key, False) != document[key]]
        if other:
            raise ConfigError(
                f"{path} has rows that were played with other {other}: give another file."
            )
        document = {**document, "rows": [*before["rows"], *document["rows"]]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
