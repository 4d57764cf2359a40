"""The dataset doctor: looks at a dataset before anyone trains on it.

    report = examine("gem/pointmaze/large-v0")
    print(report)                     # in words
    json.dumps(report.to_dict())      # for programs
    report.healthy                    # no finding forbids to train

`arrays` looks at the numbers alone, `modes` at how varied they are, `environment` at what the
dataset says about its environments, and `replay` plays recorded steps again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gem_policy.errors import DatasetError
from gem_policy.training.doctor import arrays, environment, modes, replay
from gem_policy.training.doctor.evidence import Evidence, gather
from gem_policy.training.doctor.report import Finding, Report, Severity, sort
from gem_policy.training.location import locate, open_source

__all__ = ["Finding", "Report", "Severity", "examine"]

CHECKS: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    arrays.check_episodes,
    arrays.check_finite,
    arrays.check_observations,
    arrays.check_actions,
    arrays.check_rewards,
    arrays.check_duplicates,
    arrays.check_order,
    environment.check_horizon,
    environment.check_references,
    environment.check_mazes,
    modes.check_modes,
    modes.check_coverage,
)


def examine(dataset: str | Path, *, download: bool = False, simulate: bool = True) -> Report:
    """Look for everything that is wrong with a dataset; problems are findings, not errors.

    Args:
        dataset: As for `gem_policy.training.dataset.load`.
        download: Whether it may be fetched when it is not here.
        simulate: Whether to make its environment and play some steps again.

    Raises:
        DatasetError: if the dataset is not there at all.
        DependencyError: if Minari is not installed.
    """
    folder = locate(dataset, download=download)
    try:
        source = open_source(folder)
    except DatasetError as error:
        advice = "Download or make the dataset again."
        return Report(str(dataset), {}, (Finding("unreadable", "error", str(error), advice),))
    evidence, findings = gather(source)
    if evidence is None:
        return Report(source.id, {"file format": source.file_format}, sort(findings))
    with np.errstate(invalid="ignore", over="ignore"):
        for check in CHECKS:
            findings += check(evidence)
        if simulate:
            findings += _simulated(evidence)
    if any(finding.code == "replay-agrees" for finding in findings):
        # The simulator itself is a better witness than a regression.
        findings = [finding for finding in findings if finding.code != "shifted-actions"]
    return Report(source.id, _facts(evidence), sort(findings))


def _simulated(evidence: Evidence) -> Iterator[Finding]:
    spec = environment.parse(evidence.source.metadata.get("env_spec"))
    if spec is None:
        yield from environment.check_rebuild(evidence, None)
        return
    try:
        env = environment.rebuild(spec)
    except Exception as error:  # simulators are not choosy
        yield from environment.check_rebuild(evidence, error)
        return
    try:
        yield from environment.check_rebuild(evidence, env)
        yield from replay.check_replay(evidence, env)
    finally:
        env.close()


def _facts(evidence: Evidence) -> dict[str, object]:
    source, returns, last = evidence.source, evidence.returns, evidence.last
    terminated, truncated = evidence.terminations[last], evidence.truncations[last]
    facts: dict[str, object] = {
        "environment": environment.environment_id(evidence) or "unknown",
        "file format": source.file_format,
        "episodes": len(evidence.lengths),
        "steps": evidence.steps,
        "observation size": evidence.observations.shape[1],
        "action size": evidence.actions.shape[1],
        "episode length": _spread(evidence.lengths),
        "return": _spread(returns),
        "reward": _spread(evidence.rewards),
        "ends": f"{int(terminated.sum())} terminated, {int((truncated & ~terminated).sum())} "
        f"truncated, {int((~terminated & ~truncated).sum())} unmarked",
    }
    low = source.metadata.get("ref_min_score")
    high = source.metadata.get("ref_max_score")
    if low is not None and high is not None:
        facts["reference returns"] = f"{low:.6g} (random), {high:.6g} (expert)"
    return facts


def _spread(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "none is finite"
    low, mean, high = finite.min(), finite.mean(), finite.max()
    return f"{mean:.6g} mean, {finite.std():.4g} std, {low:.6g} to {high:.6g}"
