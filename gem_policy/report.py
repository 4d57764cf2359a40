"""Who plays in an evaluation, and the document that its numbers are kept in."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gem_policy.checkpoint import write_atomically
from gem_policy.errors import ConfigError
from gem_policy.evaluate import CONFIDENCE, RESAMPLES, ReportRow, machine
from gem_policy.mixture_predictor import MixturePredictor
from gem_policy.policy import GEMPolicy
from gem_policy.predictor import Predictor

# How the episodes of a report start; reports of before have nothing there, and other starts.
STARTS = "the k-th episode of environment i from seed + i + k * envs"
# What rows of one report share; a report of before may know less of the policy.
PLAYED = (
    "dataset_id",
    "environment",
    "episodes",
    "seed",
    "envs",
    "starts",
    "batched",
    "compiled",
)
POLICY = ("train", "network", "gain_unit")


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
        "starts": STARTS,
        "batched": batched,
        "compiled": policy.compiled,
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
        document["rows"][0:], document["episodes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no report of `gem-policy evaluate`: {error!r}.") from error
    return document


def check_appended(document: Mapping[str, Any], before: Mapping[str, Any], path: Path) -> None:
    """Raise a `ConfigError` unless rows of a report belong with those of an earlier one."""
    told = json.loads(json.dumps(document))
    other = [key for key in PLAYED if before.get(key, False) != told[key]]
    other += [key for key in POLICY if key in before and before[key] != told[key]]
    if other:
        raise ConfigError(
            f"{path} has rows with other {other}: give another file. Another policy joins the rows "
            "by --compare LABEL=SOURCE."
        )


def require_writable(path: Path) -> None:
    """Make the folder of a file to be written, before the work that would be lost.

    Raises:
        ConfigError: Nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        if not _is_stream(path):
            with tempfile.TemporaryFile(dir=path.parent):
                pass
    except OSError as error:
        raise ConfigError(f"Cannot write {path}: {error}. Give a file in a folder of yours.") from (
            error
        )


def write_document(document: Mapping[str, Any], path: Path) -> None:
    """Write a document as JSON: in whole, or not at all.

    Raises:
        CheckpointError: It cannot be written.
    """
    text = json.dumps(document, indent=1) + "\n"
    if _is_stream(path):
        path.write_text(text)
    else:
        write_atomically(path.resolve(), text.encode())


def _is_stream(path: Path) -> bool:
    """Whether it is a terminal, a pipe, or whatever else must not be replaced."""
    return path.exists() and not path.is_file()
