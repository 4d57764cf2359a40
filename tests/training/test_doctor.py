from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from planted import (
    DATASETS,
    DEFECTS,
    SIMULATED,
    Buffers,
    Options,
    Plant,
    constant_dimension,
    contact_forces,
    damaged_file,
    healthy_dataset,
    nan_reward,
    no_ends,
    short_pen,
    unknown_format,
    vanished_environment,
)
from small_datasets import write_dataset

from gem_policy.training.doctor import Report, examine
from gem_policy.training.doctor.evidence import Evidence, gather
from gem_policy.training.doctor.modes import multimodality
from gem_policy.training.location import locate, open_source

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture(scope="module")
def healthy() -> tuple[Buffers, Options]:
    return healthy_dataset()


def test_a_healthy_dataset_passes_with_notes_only(healthy: tuple[Buffers, Options]) -> None:
    buffers, options = healthy
    write_dataset("test/good-v0", buffers, **options)
    report = examine("test/good-v0")
    assert report.healthy and report.codes("error", "warning") == ()
    assert {"replay-agrees", "multimodality", "coverage"} <= set(report.codes("note"))
    assert report.facts["episodes"] == len(buffers) and report.facts["steps"] == 1500
    assert report.facts["environment"] == "PointMaze_UMaze-v3"
    assert str(report).endswith("fit for training: 0 errors, 0 warnings")


@pytest.mark.parametrize(
    ("plant", "code", "severity"), DEFECTS, ids=[f"{d[0].__name__}-{d[1]}" for d in DEFECTS]
)
def test_every_planted_defect_is_found(
    healthy: tuple[Buffers, Options],
    plant: Plant,
    code: str,
    severity: str,
) -> None:
    buffers, options = deepcopy(healthy)
    plant(buffers, options)
    write_dataset("test/bad-v0", buffers, **options)
    finding = find(examine("test/bad-v0", simulate=code in SIMULATED), code)
    assert finding.severity == severity
    assert finding.advice


def find(report: Report, code: str) -> Any:
    assert code in report.codes(), f"{code} not in {report}"
    return next(finding for finding in report.findings if finding.code == code)


def test_a_report_is_json_and_errors_come_first(healthy: tuple[Buffers, Options]) -> None:
    buffers, options = deepcopy(healthy)
    for plant in (constant_dimension, no_ends, nan_reward):
        plant(buffers, options)
    write_dataset("test/bad-v0", buffers, **options)
    report = examine("test/bad-v0", simulate=False)
    again = json.loads(json.dumps(report.to_dict()))
    assert again["dataset"] == "test/bad-v0" and again["healthy"] is False
    severities = [finding["severity"] for finding in again["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert "ERROR nan-rewards: 1 NaN" in str(report) and "not fit for training" in str(report)


@pytest.mark.parametrize(
    ("plant", "code", "severity"), DATASETS, ids=[d[0].__name__ for d in DATASETS]
)
def test_every_dataset_with_a_defect_is_found(
    root: Path, plant: Callable[[Path], str], code: str, severity: str
) -> None:
    finding = find(examine(plant(root)), code)
    assert finding.severity == severity
    assert finding.advice


def test_an_environment_that_cannot_be_made_is_named(root: Path) -> None:
    finding = find(examine(vanished_environment(root)), "environment-missing")
    assert "Vanished" in finding.text and "registers it" in finding.advice


def test_ants_of_27_and_105_numbers_are_told_apart(root: Path) -> None:
    finding = find(examine(contact_forces(root)), "observation-space-differs")
    assert "31 numbers" in finding.text and "109" in finding.text
    assert "include_cfrc_ext_in_observation=False" in finding.advice


def test_references_of_the_short_pen_are_recognized(root: Path) -> None:
    finding = find(examine(short_pen(root), simulate=False), "pen-horizon")
    assert "100 steps" in finding.text and "200" in finding.text


def test_a_seeded_reset_is_enough_to_play_an_episode_again() -> None:
    env = gym.make("Pendulum-v1")
    buffers = []
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        env.action_space.seed(seed)
        rows, actions, rewards = [observation], [], []
        for _ in range(60):
            actions.append(env.action_space.sample())
            observation, reward, *_ = env.step(actions[-1])
            rows.append(observation)
            rewards.append(reward)
        ends = np.arange(60) == 59
        buffers.append(
            {
                "seed": seed,
                "observations": np.stack(rows),
                "actions": np.stack(actions),
                "rewards": np.array(rewards),
                "terminations": np.zeros(60, dtype=bool),
                "truncations": ends,
            }
        )
    options = {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "env": "Pendulum-v1",
    }
    write_dataset("test/good-v0", buffers, **options)
    assert "replay-agrees" in examine("test/good-v0").codes()
    for buffer in buffers:
        buffer["actions"] = -buffer["actions"]
    write_dataset("test/bad-v0", buffers, **options)
    assert "replay-differs" in examine("test/bad-v0").codes()


def test_damage_is_a_finding_and_the_rest_is_examined(root: Path) -> None:
    report = examine(damaged_file(root), simulate=False)
    assert "unreadable" in report.codes("error") and report.facts["episodes"] == 2
    assert examine(unknown_format(root)).codes("error") == ("unreadable",)


@pytest.mark.parametrize("components", [1, 3])
def test_multimodality_is_about_zero_for_one_mode_and_large_for_three(components: int) -> None:
    rng = np.random.default_rng(0)
    steps = 4000
    centers = np.linspace(-0.8, 0.8, components) if components > 1 else np.zeros(1)
    actions = centers[rng.integers(components, size=(steps, 1))] + 0.05 * rng.standard_normal(
        (steps, 1)
    )
    gain = multimodality(evidence_of(rng.standard_normal((steps, 2)), actions))
    assert gain is not None
    assert abs(gain) < 0.1 if components == 1 else gain > 0.5


def evidence_of(states: np.ndarray, actions: np.ndarray) -> Evidence:
    """One step an episode, so that states need not follow from each other."""
    buffers = [
        {
            "observations": states[i : i + 10],
            "actions": actions[i : i + 9].astype(np.float32),
            "rewards": np.zeros(9),
            "terminations": np.zeros(9, dtype=bool),
            "truncations": np.arange(9) == 8,
        }
        for i in range(0, len(states), 10)
    ]
    write_dataset(
        "test/modes-v0",
        buffers,
        observation_space=gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
        action_space=gym.spaces.Box(-1, 1, (1,), np.float32),
    )
    evidence, _ = gather(open_source(locate("test/modes-v0")))
    assert evidence is not None
    return evidence
