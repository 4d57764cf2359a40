from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import (
    ClipAction,
    FlattenObservation,
    FrameStackObservation,
    NormalizeObservation,
    RescaleAction,
    TimeAwareObservation,
)
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
from small_datasets import edit_metadata, random_episodes, write_dataset

from gem_policy.errors import TrainingError
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import load
from gem_policy.training.doctor import Report, examine
from gem_policy.training.doctor.evidence import Evidence, gather
from gem_policy.training.doctor.modes import multimodality
from gem_policy.training.location import locate, open_source
from gem_policy.training.preparation import prepare

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


class Keyed(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Pendulum's observations under two keys, in the order in which they are given."""

    def __init__(self, env: gym.Env[Any, Any], keys: list[str]) -> None:
        RecordConstructorArgs.__init__(self, keys=keys)
        super().__init__(env)
        self.keys = keys
        boxes = [gym.spaces.Box(-np.inf, np.inf, (n,), np.float32) for n in (1, 2)]
        self.observation_space = gym.spaces.Dict(OrderedDict(zip(keys, boxes, strict=True)))

    def observation(self, observation: Any) -> Any:
        return dict(zip(self.keys, (observation[:1], observation[1:]), strict=True))


class Doubled(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Returns twice the numbers that its space has."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def observation(self, observation: Any) -> Any:
        return np.concatenate([observation, observation])


class Bounded(gym.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """What is advised for unbounded actions."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def action(self, action: Any) -> Any:
        return action


def pendulum(**kwargs: Any) -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1", disable_env_checker=True, **kwargs)


def recorded(
    env: gym.Env[Any, Any], steps: int = 60, options: dict[str, Any] | None = None
) -> tuple[Buffers, Options]:
    """Four episodes of random actions with the seeds of their resets, and what is said of them."""
    buffers = []
    for seed in range(4):
        observation, _ = env.reset(seed=seed, options=options)
        env.action_space.seed(seed)
        rows, actions, rewards = [observation], [], []
        for _ in range(steps):
            actions.append(env.action_space.sample())
            observation, reward, *_ = env.step(actions[-1])
            rows.append(observation)
            rewards.append(reward)
        buffers.append(
            {
                "seed": seed,
                "options": options,
                "observations": stacked(rows),
                "actions": np.stack(actions),
                "rewards": np.array(rewards),
                "terminations": np.zeros(steps, dtype=bool),
                "truncations": np.arange(steps) == steps - 1,
            }
        )
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    return buffers, {**spaces, "env": env}


def stacked(rows: list[Any]) -> Any:
    if isinstance(rows[0], dict):
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return np.stack(rows)


def test_a_seeded_reset_is_enough_to_play_an_episode_again() -> None:
    buffers, options = recorded(pendulum())
    write_dataset("test/good-v0", buffers, **options)
    assert "replay-agrees" in examine("test/good-v0").codes()
    for buffer in buffers:
        buffer["actions"] = -buffer["actions"]
    write_dataset("test/bad-v0", buffers, **options)
    assert "replay-differs" in examine("test/bad-v0").codes()


@pytest.mark.parametrize(
    "wrap",
    [
        TimeAwareObservation,
        lambda env: FrameStackObservation(env, 3),
        lambda env: RescaleAction(env, -1, 1),
        lambda env: FlattenObservation(Keyed(env, ["zeta", "alpha"])),
        lambda env: Keyed(env, ["zeta", "alpha"]),  # Minari stores them sorted
    ],
    ids=["time", "stack", "rescaled", "flat", "keys"],
)
def test_steps_are_played_again_through_the_wrappers_of_the_recording(wrap: Any) -> None:
    buffers, options = recorded(wrap(pendulum()))
    write_dataset("test/good-v0", buffers, **options)
    report = examine("test/good-v0")
    assert "replay-agrees" in report.codes() and report.healthy, report


def test_what_a_reset_was_given_is_given_again() -> None:
    buffers, options = recorded(pendulum(), options={"x_init": 0.1, "y_init": 0.2})
    write_dataset("test/good-v0", buffers, **options)
    assert "replay-agrees" in examine("test/good-v0").codes()


def test_a_seeded_episode_is_played_to_its_end_and_no_further() -> None:
    buffers, options = recorded(pendulum(), steps=20)
    options["env"] = pendulum(max_episode_steps=10)
    write_dataset("test/good-v0", buffers, **options)
    assert find(examine("test/good-v0"), "replay-agrees").text.startswith("40 steps")


def test_wrappers_with_a_memory_of_their_own_are_not_played_again() -> None:
    buffers, options = recorded(NormalizeObservation(pendulum()))
    write_dataset("test/good-v0", buffers, **options)
    report = examine("test/good-v0")
    assert "through NormalizeObservation" in find(report, "no-replay").text and report.healthy


@pytest.mark.parametrize(
    ("name", "code"), [("SupportShield", "no-replay"), ("SupportMonitor", "replay-agrees")]
)
def test_a_policy_that_had_its_say_cannot_be_asked_again(root: Path, name: str, code: str) -> None:
    buffers, options = recorded(pendulum())
    if code == "no-replay":  # other actions than those that the simulator got
        for buffer in buffers:
            buffer["actions"] = -buffer["actions"]
    write_dataset("test/good-v0", buffers, **options)
    spec = json.loads(pendulum().spec.to_json())
    wrapper = {"name": name, "entry_point": f"gem_policy.wrappers:{name}"}
    spec["additional_wrappers"] = [{**wrapper, "kwargs": {"policy": "somewhere"}}]
    edit_metadata(root, "test/good-v0", env_spec=json.dumps(spec))
    report = examine("test/good-v0")
    assert code in report.codes() and report.healthy, report


def test_states_of_the_simulator_say_nothing_about_wrappers(
    healthy: tuple[Buffers, Options],
) -> None:
    buffers, options = deepcopy(healthy)
    doubled = gym.spaces.Box(-2.0, 2.0, (2,), np.float32)
    for buffer in buffers:
        buffer["actions"] = buffer["actions"] * 2
    bounds = {"min_action": -2, "max_action": 2}
    options["env"].additional_wrappers = (RescaleAction.wrapper_spec(**bounds),)
    write_dataset("test/good-v0", buffers, **{**options, "action_space": doubled})
    report = examine("test/good-v0")
    assert "through RescaleAction" in find(report, "no-replay").text and report.healthy


@pytest.mark.parametrize(
    ("was", "now", "text"),
    [
        (lambda env: env, Doubled, "6 numbers, expected 3"),
        (
            lambda env: Keyed(env, ["one", "two"]),
            lambda env: Keyed(env, ["one", "other"]),
            "no entry 'two'",
        ),
    ],
    ids=["box", "dict"],
)
def test_observations_of_another_form_are_a_finding(was: Any, now: Any, text: str) -> None:
    buffers, options = recorded(was(pendulum()))
    write_dataset("test/bad-v0", buffers, **{**options, "env": now(pendulum())})
    finding = find(examine("test/bad-v0"), "replay-differs")
    assert finding.severity == "error" and text in finding.text


def test_the_advice_for_unbounded_actions_can_be_followed() -> None:
    unbounded = ClipAction(pendulum())
    buffers, options = recorded(Bounded(unbounded))
    write_dataset("test/bad-v0", buffers, **{**options, "action_space": unbounded.action_space})
    advice = find(examine("test/bad-v0"), "unbounded-actions").advice
    assert "ActionWrapper class of your own" in advice and "RecordConstructorArgs" in advice
    write_dataset("test/good-v0", buffers, **options)
    report = examine("test/good-v0")
    assert report.healthy and "replay-agrees" in report.codes(), report
    assert load("test/good-v0").action_space.is_bounded("both")


@pytest.mark.parametrize("reward", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("terminated", [False, True])
def test_a_constant_reward_is_an_error_where_training_refuses_it(
    reward: float, terminated: bool
) -> None:
    episodes = random_episodes(4, terminated=terminated)
    for episode in episodes:
        episode["rewards"][:] = reward
    write_dataset("test/constant-v0", episodes)
    finding = find(examine("test/constant-v0", simulate=False), "constant-reward")
    if terminated and reward != 0.0:
        prepare(load("test/constant-v0"), TrainConfig(), torch.device("cpu"))
        assert finding.severity == "note"
    else:
        with pytest.raises(TrainingError, match="equally good"):
            prepare(load("test/constant-v0"), TrainConfig(), torch.device("cpu"))
        assert finding.severity == "error"


def test_infinite_rewards_are_compared_with_no_reference() -> None:
    buffers, options = recorded(pendulum())
    for buffer in buffers:
        buffer["rewards"][:] = np.inf
    references = {"ref_min_score": 0.0, "ref_max_score": 1.0}
    write_dataset("test/bad-v0", buffers, **options, **references)
    report = examine("test/bad-v0")
    assert "nan-rewards" in report.codes("error")
    assert "references-of-another-horizon" not in report.codes()


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
