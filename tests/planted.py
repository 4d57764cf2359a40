"""A small healthy dataset, and every defect that the doctor knows, planted in it.

The tests and `benchmarks/doctor.py` use the same.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import gymnasium as gym
import gymnasium_robotics
import h5py
import numpy as np
from gymnasium.envs.registration import EnvSpec
from small_datasets import data_folder, edit_metadata, random_episode, write_dataset

from gem_policy.training.recipes import pointmaze
from gem_policy.training.recipes.recipe import Shard

UMAZE = pointmaze.VARIANTS[0]
Buffers = list[dict[str, Any]]
Options = dict[str, Any]
Plant = Callable[[Buffers, Options], None]


def healthy_dataset() -> tuple[Buffers, Options]:
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


def nan_reward(buffers: Buffers, options: Options) -> None:
    buffers[3]["rewards"][2] = np.nan


def no_finite_reward(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["rewards"][:] = np.nan


def infinite_observation(buffers: Buffers, options: Options) -> None:
    buffers[3]["observations"]["observation"][2, 0] = np.inf


def nan_action(buffers: Buffers, options: Options) -> None:
    buffers[3]["actions"][2, 0] = np.nan


def constant_dimension(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["observations"]["desired_goal"][:, 1] = 0.7


def explosion(buffers: Buffers, options: Options) -> None:
    buffers[3]["observations"]["observation"][2, 3] = 1e6


def outside(buffers: Buffers, options: Options) -> None:
    buffers[3]["actions"][2, 0] = 1.05


def far_outside(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["actions"] = buffer["actions"] * 3


def stuck(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["actions"] = np.sign(buffer["actions"])


def constant_action(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["actions"][:, 1] = 0.25


def unbounded(buffers: Buffers, options: Options) -> None:
    options["action_space"] = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)


def integers(buffers: Buffers, options: Options) -> None:
    options["action_space"] = gym.spaces.Box(-1, 1, (2,), np.int32)


def immovable(buffers: Buffers, options: Options) -> None:
    low, high = np.array([[-1.0, 0.5], [1.0, 0.5]], dtype=np.float32)
    options["action_space"] = gym.spaces.Box(low, high, dtype=np.float32)


def discrete(buffers: Buffers, options: Options) -> None:
    options["action_space"] = gym.spaces.Discrete(4)
    for buffer in buffers:
        buffer["actions"] = np.zeros(len(buffer["rewards"]), dtype=np.int64)


def zero_rewards(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["rewards"][:] = 0.0


def time_penalty_without_an_end(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["rewards"][:] = -1.0


def scaled_rewards(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["rewards"] = buffer["rewards"] - 1.0


def twice(buffers: Buffers, options: Options) -> None:
    buffers.extend(deepcopy(buffers))


def no_last_observation(buffers: Buffers, options: Options) -> None:
    buffers[3]["observations"] = {k: v[:-1] for k, v in buffers[3]["observations"].items()}


def action_of_the_row_before(buffers: Buffers, options: Options) -> None:
    # Action t now stands beside observation t + 1: its effect lies one row back.
    for buffer in buffers:
        buffer["actions"] = np.roll(buffer["actions"], -1, axis=0)


def drifting_rows(buffers: Buffers, options: Options) -> None:
    """Join T + 1 observations and T actions of all episodes and cut both at the actions' ends."""
    names = list(buffers[0]["observations"])
    joined = {n: np.concatenate([b["observations"][n] for b in buffers]) for n in names}
    first = 0
    for buffer in buffers:
        stop = first + len(buffer["rewards"])
        buffer["observations"] = {n: joined[n][first : stop + 1] for n in names}
        first = stop


def hidden_reset(buffers: Buffers, options: Options) -> None:
    far = {n: v[::-1].copy() for n, v in buffers[5]["observations"].items()}
    for name, rows in buffers[4]["observations"].items():
        buffers[4]["observations"][name] = np.concatenate([rows, far[name] + 40.0])
    for name in ("actions", "rewards", "truncations", "terminations"):
        buffers[4][name] = np.concatenate([buffers[4][name], buffers[5][name]])
    buffers[4]["actions"] = np.concatenate([buffers[4]["actions"], buffers[4]["actions"][:1]])
    for name in ("rewards", "truncations", "terminations"):
        buffers[4][name] = np.concatenate([buffers[4][name], buffers[4][name][:1]])
    buffers[4]["infos"] = None


def no_ends(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["truncations"][:] = False


def end_inside(buffers: Buffers, options: Options) -> None:
    buffers[3]["terminations"][1] = True


def one_episode(buffers: Buffers, options: Options) -> None:
    del buffers[1:]


def no_references(buffers: Buffers, options: Options) -> None:
    del options["ref_min_score"], options["ref_max_score"]


def reversed_references(buffers: Buffers, options: Options) -> None:
    options["ref_min_score"] = 300.0


def short_references(buffers: Buffers, options: Options) -> None:
    options["eval_env"] = options["env"]
    options["ref_min_score"], options["ref_max_score"] = 0.0, 0.5


def no_environment(buffers: Buffers, options: Options) -> None:
    del options["env"], options["eval_env"]


def unknown_version(buffers: Buffers, options: Options) -> None:
    options["requirements"] = ["numpy>=999", "no-such-package>=1"]


def flipped_maze(buffers: Buffers, options: Options) -> None:
    spec = deepcopy(options["eval_env"])
    spec.kwargs["maze_map"] = [row[::-1] for row in spec.kwargs["maze_map"]]
    options["eval_env"] = spec


def other_maze(buffers: Buffers, options: Options) -> None:
    options["eval_env"] = pointmaze.eval_env_spec(pointmaze.VARIANTS[1])


def short_limit(buffers: Buffers, options: Options) -> None:
    options["env"] = deepcopy(options["env"])
    options["env"].max_episode_steps = 20


def other_dynamics(buffers: Buffers, options: Options) -> None:
    for buffer in buffers:
        buffer["infos"]["qvel"] = buffer["infos"]["qvel"] * 1.5


# Findings that need the simulator.
SIMULATED = ("replay-differs", "reward-differs", "reward-not-of-goal", "no-environment")
SIMULATED += ("requirements",)
# What is planted, what the doctor must call it, and how bad that is.
DEFECTS: list[tuple[Plant, str, str]] = [
    (nan_reward, "nan-rewards", "error"),
    (no_finite_reward, "nan-rewards", "error"),
    (infinite_observation, "nan-observations", "error"),
    (nan_action, "nan-actions", "error"),
    (constant_dimension, "constant-observation", "note"),
    (explosion, "exploding-observation", "warning"),
    (outside, "actions-outside", "warning"),
    (far_outside, "actions-outside", "error"),
    (stuck, "actions-stuck", "warning"),
    (constant_action, "constant-action", "warning"),
    (unbounded, "unbounded-actions", "error"),
    (integers, "action-space", "error"),
    (immovable, "action-space", "error"),
    (discrete, "action-space", "error"),
    (zero_rewards, "constant-reward", "error"),
    (time_penalty_without_an_end, "constant-reward", "error"),
    (scaled_rewards, "reward-differs", "warning"),
    (scaled_rewards, "reward-not-of-goal", "warning"),
    (twice, "duplicates", "warning"),
    (no_last_observation, "misaligned", "error"),
    (action_of_the_row_before, "shifted-actions", "error"),
    (action_of_the_row_before, "replay-differs", "error"),
    (drifting_rows, "replay-differs", "error"),
    (hidden_reset, "jumps", "warning"),
    (hidden_reset, "end-inside", "warning"),
    (no_ends, "no-end", "warning"),
    (end_inside, "end-inside", "warning"),
    (one_episode, "one-episode", "error"),
    (no_references, "no-references", "warning"),
    (reversed_references, "references-reversed", "error"),
    (short_references, "references-of-another-horizon", "warning"),
    (no_environment, "no-environment", "warning"),
    (unknown_version, "requirements", "warning"),
    (flipped_maze, "maze-flipped", "error"),
    (other_maze, "maze-differs", "warning"),
    (short_limit, "longer-than-limit", "warning"),
    (other_dynamics, "replay-differs", "error"),
]


def vanished_environment(root: Path) -> str:
    """Its environment is in no package here."""
    rng = np.random.default_rng(0)
    write_dataset("test/gone-v0", [random_episode(5, rng) for _ in range(3)])
    spec = EnvSpec(id="Vanished-v7", entry_point="no_such_module:Env")
    edit_metadata(root, "test/gone-v0", env_spec=spec.to_json())
    return "test/gone-v0"


def contact_forces(root: Path) -> str:
    """An ant of 27 numbers, said to come from version 5 as it is registered, which has 105."""
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
    gym.register_envs(gymnasium_robotics)
    write_dataset("test/ant-v0", buffers, observation_space=space, action_space=actions)
    edit_metadata(root, "test/ant-v0", env_spec=gym.spec("AntMaze_UMaze-v5").to_json())
    return "test/ant-v0"


def short_pen(root: Path) -> str:
    """Reference scores of 100 steps beside an environment of 200."""
    rng = np.random.default_rng(0)
    write_dataset("test/pen-v0", [random_episode(5, rng) for _ in range(3)])
    gym.register_envs(gymnasium_robotics)
    spec = gym.spec("AdroitHandPen-v1").to_json()
    edit_metadata(
        root, "test/pen-v0", env_spec=spec, ref_min_score=96.262799, ref_max_score=3076.833102
    )
    return "test/pen-v0"


def damaged_file(root: Path) -> str:
    """An array is gone from the middle of the file."""
    buffers, options = healthy_dataset()
    write_dataset("test/bad-v0", buffers, **options)
    with h5py.File(data_folder(root, "test/bad-v0") / "main_data.hdf5", "a") as file:
        del file["episode_2/actions"]
    return "test/bad-v0"


def nothing(root: Path) -> str:
    """Its recording was begun and left."""
    write_dataset("test/empty-v0", [random_episode(5, np.random.default_rng(0))])
    edit_metadata(root, "test/empty-v0", total_episodes=0, total_steps=0)
    return "test/empty-v0"


def reference_in_words(root: Path) -> str:
    """A reference score is no number."""
    write_dataset("test/words-v0", [random_episode(5, np.random.default_rng(0))])
    edit_metadata(root, "test/words-v0", ref_min_score="low", ref_max_score="high")
    return "test/words-v0"


def unknown_format(root: Path) -> str:
    """Written by a Minari that does not exist."""
    rng = np.random.default_rng(0)
    write_dataset("test/new-v0", [random_episode(5, rng) for _ in range(3)])
    edit_metadata(root, "test/new-v0", minari_version="99.0")
    return "test/new-v0"


# Defects of whole datasets, written below a root.
DATASETS: list[tuple[Callable[[Path], str], str, str]] = [
    (vanished_environment, "environment-missing", "warning"),
    (contact_forces, "observation-space-differs", "error"),
    (short_pen, "pen-horizon", "warning"),
    (damaged_file, "unreadable", "error"),
    (nothing, "no-episodes", "error"),
    (reference_in_words, "unreadable", "error"),
    (unknown_format, "unreadable", "error"),
]
