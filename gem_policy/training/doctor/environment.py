"""What the dataset says about its environments, held against the environments themselves."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from gem_policy.env_specs import read_spec, registered
from gem_policy.errors import DependencyError, SpaceError
from gem_policy.training.doctor.evidence import Evidence
from gem_policy.training.doctor.report import Finding

WALL = 1
# Published reference scores of D4RL's pen tasks; its episodes had 100 steps.
D4RL_PEN = (96.262799, 3076.833102)
PEN_HORIZON = 100

Environment = gym.Env[Any, Any]


def environment_id(evidence: Evidence, key: str = "env_spec") -> str:
    """The id in a dataset's specification, empty when there is none."""
    spec = parse(evidence.source.metadata.get(key))
    return "" if spec is None else spec.id


def parse(text: object) -> EnvSpec | None:
    """A specification as Minari stores it; None when absent or unreadable."""
    if not isinstance(text, str):
        return None
    try:
        return read_spec(text)
    except SpaceError:
        return None


def rebuild(spec: EnvSpec) -> Environment:
    """Make the environment, quietly, with the packages registered that usually hold it.

    By the code that is registered under its id: see `gem_policy.env_specs`.

    Raises:
        Exception: whatever the environment raises; simulators are not choosy.
    """
    from gem_policy.training.recipes.robotics import register_robotics

    with contextlib.suppress(DependencyError):
        register_robotics()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gym.make(registered(spec), disable_env_checker=True)


def check_rebuild(evidence: Evidence, env: Environment | Exception | None) -> Iterator[Finding]:
    """Whether the environment can be made here, and is the one that the data came from."""
    name = environment_id(evidence)
    if env is None:
        yield Finding(
            "no-environment",
            "warning",
            "The dataset does not say which environment it comes from.",
            "A policy trained on it can be evaluated only where you name the environment yourself.",
        )
    elif isinstance(env, Exception):
        yield Finding(
            "environment-missing",
            "warning",
            f"The environment `{name}` cannot be made here ({type(env).__name__}: {env}).",
            "Install what it needs: pip install 'gem-policy[envs]' brings MuJoCo and "
            "Gymnasium-Robotics; an id without a package here needs the package that registers it.",
        )
    else:
        yield from _requirements(evidence)
        yield from _spaces(evidence, env, name)


def check_horizon(evidence: Evidence) -> Iterator[Finding]:
    """Episode lengths against the environment's limit."""
    spec = parse(evidence.source.metadata.get("env_spec"))
    limit = spec.max_episode_steps if spec is not None else None
    longest = int(evidence.lengths.max())
    if limit is not None and longest > limit:
        yield Finding(
            "longer-than-limit",
            "warning",
            f"The longest episode has {longest} steps; `{environment_id(evidence)}` stops after "
            f"{limit}.",
            "The data was made with another limit: returns and reference scores are not those of "
            "the environment that is named.",
        )


def check_references(evidence: Evidence) -> Iterator[Finding]:
    """Whether reference scores are there and fit the horizon of the evaluation."""
    stored = evidence.source.metadata
    low, high = stored.get("ref_min_score"), stored.get("ref_max_score")
    if low is None or high is None:
        yield Finding(
            "no-references",
            "warning",
            "The dataset has no reference scores; a normalized score cannot be computed.",
            "Report raw returns, or compute references: 100 episodes of a random and of an expert "
            "policy in the evaluation environment.",
        )
        return
    if not high > low:
        yield Finding(
            "references-reversed",
            "error",
            f"The reference scores are {low:g} (random) and {high:g} (expert).",
            "The expert must score more; correct the metadata before normalizing anything.",
        )
        return
    yield from _pen(evidence, low, high)
    evaluation = parse(stored.get("eval_env_spec")) or parse(stored.get("env_spec"))
    data = parse(stored.get("env_spec"))
    same = evaluation is not None and data is not None and _same_task(evaluation, data)
    returns = evidence.returns[np.isfinite(evidence.returns)]
    score = (float(returns.mean()) - low) / (high - low) if len(returns) else 0.0
    if same and score > 1.5:
        yield Finding(
            "references-of-another-horizon",
            "warning",
            f"The mean return of the data, {returns.mean():.4g}, is {score:.0%} of "
            f"the way from the random ({low:g}) to the expert reference ({high:g}).",
            "References measured with shorter episodes look like this. Report raw returns and the "
            "horizon beside every normalized score, or measure the references again.",
        )


def check_mazes(evidence: Evidence) -> Iterator[Finding]:
    """Whether data and evaluation happen in the same maze."""
    specs = [parse(evidence.source.metadata.get(key)) for key in ("env_spec", "eval_env_spec")]
    maps = [_walls(spec) for spec in specs]
    if maps[0] is None or maps[1] is None or maps[0] == maps[1]:
        return
    data, evaluation = (np.array(walls) for walls in maps)
    flips = {
        "upside down": data[::-1],
        "mirrored left to right": data[:, ::-1],
        "turned by half": data[::-1, ::-1],
        "transposed": data.T,
    }
    how = next((name for name, flip in flips.items() if np.array_equal(flip, evaluation)), None)
    yield Finding(
        "maze-flipped" if how else "maze-differs",
        "error" if how else "warning",
        f"The evaluation maze is the maze of the data {how}."
        if how
        else "The evaluation environment has another maze than the data.",
        "A policy scored there is scored in a maze that it has never seen. Evaluate in the "
        "environment of the data, or say which maze every score belongs to.",
    )


def _requirements(evidence: Evidence) -> Iterator[Finding]:
    from packaging.requirements import InvalidRequirement, Requirement

    unmet = []
    for text in evidence.source.metadata.get("requirements") or ():
        try:
            requirement = Requirement(text)
            installed = metadata.version(requirement.name)
        except InvalidRequirement:
            continue
        except metadata.PackageNotFoundError:
            unmet.append(f"{text} (not installed)")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            unmet.append(f"{text} (here: {installed})")
    if unmet:
        yield Finding(
            "requirements",
            "warning",
            f"The dataset asks for {', '.join(unmet)}.",
            "Another version may simulate otherwise: see whether the replay below agrees.",
        )


def _spaces(evidence: Evidence, env: Environment, name: str) -> Iterator[Finding]:
    pairs = (
        ("observation", evidence.source.observation_space, env.observation_space),
        ("action", evidence.source.action_space, env.action_space),
    )
    for kind, stored, actual in pairs:
        if stored == actual:
            continue
        sizes = [gym.spaces.flatdim(space) for space in (stored, actual)]
        if sizes[0] == sizes[1]:
            yield Finding(
                f"{kind}-space-details",
                "note",
                f"The {kind} space of `{name}` here differs from the stored one in bounds, type or "
                "names, not in size.",
            )
            continue
        advice = "Evaluate in the environment and version that the data was made with."
        if "AntMaze" in name and {n - 4 for n in sizes} == {27, 105}:
            advice = (
                "Version 5 of the ant adds 78 contact forces; pass "
                "include_cfrc_ext_in_observation=False to gymnasium.make, or use version 4."
            )
        yield Finding(
            f"{kind}-space-differs",
            "error",
            f"The dataset has {sizes[0]} numbers in a flattened {kind}, `{name}` here has "
            f"{sizes[1]}.",
            advice,
        )


def _pen(evidence: Evidence, low: float, high: float) -> Iterator[Finding]:
    name = environment_id(evidence, "eval_env_spec") or environment_id(evidence)
    spec = parse(evidence.source.metadata.get("eval_env_spec")) or parse(
        evidence.source.metadata.get("env_spec")
    )
    if spec is None or not name.startswith("AdroitHandPen"):
        return
    limit = spec.max_episode_steps
    if np.allclose((low, high), D4RL_PEN, rtol=0.02) and limit != PEN_HORIZON:
        yield Finding(
            "pen-horizon",
            "warning",
            f"The reference scores ({low:g}, {high:g}) are D4RL's, from episodes of "
            f"{PEN_HORIZON} steps; `{name}` runs for {limit}.",
            f"Scores come out far too high. Evaluate with max_episode_steps={PEN_HORIZON}, or "
            f"measure references over {limit} steps.",
        )


def _same_task(one: EnvSpec, other: EnvSpec) -> bool:
    limits = one.max_episode_steps, other.max_episode_steps
    return one.id == other.id and limits[0] == limits[1] and one.kwargs == other.kwargs


def _walls(spec: EnvSpec | None) -> list[list[bool]] | None:
    maze: Sequence[Sequence[object]] | None = spec.kwargs.get("maze_map") if spec else None
    return None if maze is None else [[cell == WALL for cell in row] for row in maze]
