from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from small_datasets import data_folder, random_episode, write_dataset

from gem_policy.training.doctor import Report, examine
from gem_policy.training.doctor.evidence import Evidence, gather
from gem_policy.training.doctor.modes import multimodality
from gem_policy.training.recipes import pointmaze
from gem_policy.training.recipes.recipe import Shard

UMAZE = pointmaze.VARIANTS[0]
Buffers = list[dict[str, Any]]
Options = dict[str, Any]


@pytest.fixture(scope="module")
def healthy() -> tuple[Buffers, Options]:
    """A small dataset of the real recipe, and what is said about it."""
    env = gym.make(pointmaze.env_spec(UMAZE), disable_env_checker=True)
    options = {
        "env": pointmaze.env_spec(UMAZE),
        "eval_env": pointmaze.eval_env_spec(UMAZE),
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "ref_min_score": 10.0,
        "ref_max_score": 200.0,
        "requirements": ["numpy>=1.0"],
    }
    env.close()
    return list(pointmaze.simulate(UMAZE, Shard(0, 1500, seed=0)).split()), options


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def test_a_healthy_dataset_passes_with_notes_only(healthy: tuple[Buffers, Options]) -> None:
    buffers, options = healthy
    write_dataset("test/good-v0", buffers, **options)
    report = examine("test/good-v0")
    assert report.healthy and report.codes("error", "warning") == ()
    assert {"replay-agrees", "multimodality", "coverage"} <= set(report.codes("note"))
    assert report.facts["episodes"] == len(buffers) and report.facts["steps"] == 1500
    assert report.facts["environment"] == "PointMaze_UMaze-v3"
    assert str(report).endswith("fit for training: 0 errors, 0 warnings")


def _nan_reward(buffers: Buffers, options: Options) -> None:
    buffers[3]["rewards"][2] = np.nan


def _infinite_observation(buffers: Buffers, options: Options) -> None:
    buffers[3]["observations"]["observation"][2, 0] = np.inf


def _nan_action(buffers: Buffers, options: Options) -> None:
    buffers[3]["actions"][2, 0] = np.nan


def _constant_dimension(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["observations"]["desired_goal"][:, 1] = 0.7


def _explosion(buffers: Buffers, options: Options) -> None:
    buffers[3]["observations"]["observation"][2, 3] = 1e6


def _outside(buffers: Buffers, options: Options) -> None:
    buffers[3]["actions"][2, 0] = 1.05


def _far_outside(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["actions"] = buffer["actions"] * 3


def _stuck(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["actions"] = np.sign(buffer["actions"])


def _constant_action(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["actions"][:, 1] = 0.25


def _unbounded(buffers: Buffers, options: Options) -> None:
    options["action_space"] = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


def _discrete(buffers: Buffers, options: Options) -> None:
    options["action_space"] = gym.spaces.Discrete(4)
    for buffer in buffers:
        buffer["actions"] = np.zeros(len(buffer["rewards"]), dtype=np.int64)


def _zero_rewards(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["rewards"][:] = 0.0


def _scaled_rewards(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["rewards"] = buffer["rewards"] - 1.0


def _twice(buffers: Buffers, options: Options) -> None:
    buffers.extend(deepcopy(buffers))


def _no_last_observation(buffers: Buffers, options: Options) -> None:
    buffers[3]["observations"] = {k: v[:-1] for k, v in buffers[3]["observations"].items()}


def _action_of_the_row_before(buffers: Buffers, options: Options) -> None:
    # Action t now stands beside observation t + 1: its effect lies one row back.
    for buffer in buffers:
        buffer["actions"] = np.roll(buffer["actions"], -1, axis=0)


def _drifting_rows(buffers: Buffers, options: Options) -> None:
    """Join T + 1 observations and T actions of all episodes and cut both at the actions' ends."""
    names = list(buffers[0]["observations"])
    joined = {n: np.concatenate([b["observations"][n] for b in buffers]) for n in names}
    first = 0
    for buffer in buffers:
        stop = first + len(buffer["rewards"])
        buffer["observations"] = {n: joined[n][first : stop + 1] for n in names}
        first = stop


def _hidden_reset(buffers: Buffers, options: Options) -> None:
    far = {n: v[::-1].copy() for n, v in buffers[5]["observations"].items()}
    for name, rows in buffers[4]["observations"].items():
        buffers[4]["observations"][name] = np.concatenate([rows, far[name] + 40.0])
    for name in ("actions", "rewards", "truncations", "terminations"):
        buffers[4][name] = np.concatenate([buffers[4][name], buffers[5][name]])
    buffers[4]["actions"] = np.concatenate([buffers[4]["actions"], buffers[4]["actions"][:1]])
    for name in ("rewards", "truncations", "terminations"):
        buffers[4][name] = np.concatenate([buffers[4][name], buffers[4][name][:1]])
    buffers[4]["infos"] = None


def _no_ends(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["truncations"][:] = False


def _end_inside(buffers: Buffers, options: Options) -> None:
    buffers[3]["terminations"][1] = True


def _one_episode(buffers: Buffers, options: Options) -> None:
    del buffers[1:]


def _no_references(buffers: Buffers, options: Options) -> None:
    del options["ref_min_score"], options["ref_max_score"]


def _reversed_references(buffers: Buffers, options: Options) -> None:
    options["ref_min_score"] = 300.0


def _short_references(buffers: Buffers, options: Options) -> None:
    options["eval_env"] = options["env"]
    options["ref_min_score"], options["ref_max_score"] = 0.0, 0.5


def _no_environment(buffers: Buffers, options: Options) -> None:
    del options["env"], options["eval_env"]


def _unknown_version(buffers: Buffers, options: Options) -> None:
    options["requirements"] = ["numpy>=999", "no-such-package>=1"]


def _flipped_maze(buffers: Buffers, options: Options) -> None:
    spec = deepcopy(options["eval_env"])
    spec.kwargs["maze_map"] = [row[::-1] for row in spec.kwargs["maze_map"]]
    options["eval_env"] = spec


def _other_maze(buffers: Buffers, options: Options) -> None:
    options["eval_env"] = pointmaze.eval_env_spec(pointmaze.VARIANTS[1])


def _short_limit(buffers: Buffers, options: Options) -> None:
    options["env"] = deepcopy(options["env"])
    options["env"].max_episode_steps = 20


def _other_dynamics(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["infos"]["qvel"] = buffer["infos"]["qvel"] * 1.5


SIMULATED = ("replay-differs", "reward-differs", "reward-not-of-goal", "no-environment")
SIMULATED += ("requirements",)
DEFECTS: list[tuple[Callable[[Buffers, Options], None], str, str]] = [
    (_nan_reward, "nan-rewards", "error"),
    (_infinite_observation, "nan-observations", "error"),
    (_nan_action, "nan-actions", "error"),
    (_constant_dimension, "constant-observation", "note"),
    (_explosion, "exploding-observation", "warning"),
    (_outside, "actions-outside", "warning"),
    (_far_outside, "actions-outside", "error"),
    (_stuck, "actions-stuck", "warning"),
    (_constant_action, "constant-action", "warning"),
    (_unbounded, "unbounded-actions", "error"),
    (_discrete, "action-space", "error"),
    (_zero_rewards, "constant-reward", "error"),
    (_scaled_rewards, "reward-differs", "warning"),
    (_scaled_rewards, "reward-not-of-goal", "warning"),
    (_twice, "duplicates", "warning"),
    (_no_last_observation, "misaligned", "error"),
    (_action_of_the_row_before, "shifted-actions", "error"),
    (_action_of_the_row_before, "replay-differs", "error"),
    (_drifting_rows, "replay-differs", "error"),
    (_hidden_reset, "jumps", "warning"),
    (_hidden_reset, "end-inside", "warning"),
    (_no_ends, "no-end", "warning"),
    (_end_inside, "end-inside", "warning"),
    (_one_episode, "one-episode", "error"),
    (_no_references, "no-references", "warning"),
    (_reversed_references, "references-reversed", "error"),
    (_short_references, "references-of-another-horizon", "warning"),
    (_no_environment, "no-environment", "warning"),
    (_unknown_version, "requirements", "warning"),
    (_flipped_maze, "maze-flipped", "error"),
    (_other_maze, "maze-differs", "warning"),
    (_short_limit, "longer-than-limit", "warning"),
    (_other_dynamics, "replay-differs", "error"),
]


@pytest.mark.parametrize(
    ("plant", "code", "severity"), DEFECTS, ids=[f"{d[0].__name__}-{d[1]}" for d in DEFECTS]
)
def test_every_planted_defect_is_found(
    healthy: tuple[Buffers, Options],
    plant: Callable[[Buffers, Options], None],
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
    for plant in (_constant_dimension, _no_ends, _nan_reward):
        plant(buffers, options)
    write_dataset("test/bad-v0", buffers, **options)
    report = examine("test/bad-v0", simulate=False)
    again = json.loads(json.dumps(report.to_dict()))
    assert again["dataset"] == "test/bad-v0" and again["healthy"] is False
    severities = [finding["severity"] for finding in again["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert "ERROR nan-rewards: 1 NaN" in str(report) and "not fit for training" in str(report)


def test_an_environment_that_cannot_be_made_is_a_warning(root: Path) -> None:
    rng = np.random.default_rng(0)
    write_dataset("test/gone-v0", [random_episode(5, rng) for _ in range(3)])
    spec = EnvSpec(id="Vanished-v7", entry_point="no_such_module:Env")
    _edit_metadata(root, "test/gone-v0", env_spec=spec.to_json())
    assert "No module named" in find(examine("test/gone-v0"), "environment-missing").text


def test_ants_of_27_and_105_numbers_are_told_apart(root: Path) -> None:
    space = gym.spaces.Dict(
        {
            "observation": gym.spaces.Box(-np.inf, np.inf, (27,), np.float64),
            "achieved_goal": gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "desired_goal": gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
        }
    )
    actions = gym.spaces.Box(-1.0, 1.0, (8,), np.float32)
    rng = np.random.default_rng(0)
    buffers = [random_episode(5, rng, space, actions) for _ in range(3)]
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    write_dataset("test/ant-v0", buffers, observation_space=space, action_space=actions)
    _edit_metadata(root, "test/ant-v0", env_spec=gym.spec("AntMaze_UMaze-v5").to_json())
    finding = find(examine("test/ant-v0"), "observation-space-differs")
    assert "31 numbers" in finding.text and "109" in finding.text
    assert "include_cfrc_ext_in_observation=False" in finding.advice


def test_references_of_the_short_pen_are_recognized(root: Path) -> None:
    rng = np.random.default_rng(0)
    write_dataset("test/pen-v0", [random_episode(5, rng) for _ in range(3)])
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    spec = gym.spec("AdroitHandPen-v1").to_json()
    _edit_metadata(
        root, "test/pen-v0", env_spec=spec, ref_min_score=96.262799, ref_max_score=3076.833102
    )
    finding = find(examine("test/pen-v0", simulate=False), "pen-horizon")
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


def test_damage_is_a_finding_not_an_exception(healthy: tuple[Buffers, Options], root: Path) -> None:
    buffers, options = healthy
    write_dataset("test/bad-v0", buffers, **options)
    with h5py.File(data_folder(root, "test/bad-v0") / "main_data.hdf5", "a") as file:
        del file["episode_2/actions"]
    report = examine("test/bad-v0", simulate=False)
    assert "unreadable" in report.codes("error") and report.facts["episodes"] == 2
    _edit_metadata(root, "test/bad-v0", minari_version="99.0")
    assert examine("test/bad-v0").codes("error") == ("unreadable",)


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
    from gem_policy.training.dataset import locate, open_source

    evidence, _ = gather(open_source(locate("test/modes-v0")))
    assert evidence is not None
    return evidence


def _edit_metadata(root: Path, dataset_id: str, **changes: Any) -> None:
    path = data_folder(root, dataset_id) / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
