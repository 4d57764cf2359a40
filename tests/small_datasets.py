"""Real Minari datasets, a few kilobytes each, and a reader so slow that it must be right."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

ACTIONS = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
OBSERVATIONS = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
GOALS = gym.spaces.Dict(
    {
        "observation": gym.spaces.Box(-np.inf, np.inf, (4,), np.float64),
        "achieved_goal": gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
        "desired_goal": gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
    }
)
NESTED = gym.spaces.Dict(
    {
        "zebra": gym.spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
        "arm": gym.spaces.Dict(
            {
                "wrist": gym.spaces.Box(-np.inf, np.inf, (1,), np.float64),
                "elbow": gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
            }
        ),
    }
)


def random_values(space: gym.Space[Any], rows: int, rng: np.random.Generator) -> Any:
    """`rows` elements of a space, stacked; normally distributed where it is unbounded."""
    if isinstance(space, gym.spaces.Dict):
        return {key: random_values(inner, rows, rng) for key, inner in space.spaces.items()}
    if isinstance(space, gym.spaces.Discrete):
        return rng.integers(space.n, size=rows)
    assert isinstance(space, gym.spaces.Box)
    if space.is_bounded("both"):
        return rng.uniform(space.low, space.high, (rows, *space.shape)).astype(space.dtype)
    return rng.standard_normal((rows, *space.shape)).astype(space.dtype)


def random_episode(
    length: int,
    rng: np.random.Generator,
    observation_space: gym.Space[Any] = OBSERVATIONS,
    action_space: gym.Space[Any] = ACTIONS,
    terminated: bool = False,
) -> dict[str, Any]:
    """Fields of an episode buffer with random content; it ends as truncated unless told."""
    ends = np.zeros(length, dtype=bool)
    ends[-1] = True
    return {
        "observations": random_values(observation_space, length + 1, rng),
        "actions": random_values(action_space, length, rng),
        "rewards": rng.standard_normal(length),
        "terminations": ends & terminated,
        "truncations": ends & (not terminated),
        "infos": {"success": [False] * (length + 1)},  # Arrow stores no flat arrays here
    }


def random_episodes(count: int, **kwargs: Any) -> list[dict[str, Any]]:
    """The same few episodes in every call, of 3, 4, 5 and so on steps."""
    rng = np.random.default_rng(0)
    return [random_episode(3 + i, rng, **kwargs) for i in range(count)]


def write_dataset(
    dataset_id: str,
    episodes: list[dict[str, Any]],
    *,
    observation_space: gym.Space[Any] = OBSERVATIONS,
    action_space: gym.Space[Any] = ACTIONS,
    data_format: str = "hdf5",
    **kwargs: Any,
) -> minari.MinariDataset:
    """Write a dataset to where MINARI_DATASETS_PATH points."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="minari")
        return minari.create_dataset_from_buffers(
            dataset_id,
            [EpisodeBuffer(**episode) for episode in episodes],
            observation_space=observation_space,
            action_space=action_space,
            data_format=data_format,
            **kwargs,
        )


def slow_transitions(dataset: minari.MinariDataset) -> list[dict[str, Any]]:
    """Every step by itself, through Minari's own iterator and Gymnasium's own `flatten`."""
    space = dataset.observation_space
    steps = []
    for number, episode in enumerate(dataset.iterate_episodes()):
        for t in range(len(episode.rewards)):
            steps.append(
                {
                    "episode": number,
                    "observations": gym.spaces.flatten(space, _row(episode.observations, t)),
                    "next_observations": gym.spaces.flatten(
                        space, _row(episode.observations, t + 1)
                    ),
                    "actions": np.ravel(episode.actions[t]),
                    "rewards": episode.rewards[t],
                    "terminated": bool(episode.terminations[t]),
                    "truncated": bool(episode.truncations[t]),
                }
            )
    return steps


def data_folder(root: Path, dataset_id: str) -> Path:
    """Where a dataset's files lie."""
    return root / dataset_id / "data"


def edit_metadata(root: Path, dataset_id: str, **changes: Any) -> None:
    """Write other values over what a dataset says about itself."""
    path = data_folder(root, dataset_id) / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _row(values: Any, index: int) -> Any:
    if isinstance(values, Mapping):
        return {key: _row(value, index) for key, value in values.items()}
    return values[index]
