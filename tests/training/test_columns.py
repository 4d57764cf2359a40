from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_datasets import edit_metadata, random_episodes, write_dataset

from gem_policy.errors import DatasetError
from gem_policy.training.dataset import load

pytestmark = pytest.mark.usefixtures("root")


def test_actions_a_little_outside_are_clipped_and_counted() -> None:
    buffers = random_episodes(2)
    buffers[0]["actions"][0] = [1.05, -1.1]
    buffers[0]["actions"][2] = [0.5, 1.01]
    write_dataset("test/any-v0", buffers)
    data = load("test/any-v0")
    assert data.clipped_actions == 2
    assert data.transitions.actions[0].tolist() == [1.0, -1.0]
    assert data.transitions.actions.abs().max() == 1.0


def _far_outside(buffers: list[dict[str, Any]]) -> None:
    buffers[0]["actions"][1] = [150.0, 0.0]


def _nan_reward(buffers: list[dict[str, Any]]) -> None:
    buffers[1]["rewards"][1] = np.nan


def _infinite_observation(buffers: list[dict[str, Any]]) -> None:
    buffers[1]["observations"][1, 2] = np.inf


def _too_large_for_float32(buffers: list[dict[str, Any]]) -> None:
    buffers[1]["observations"][1, 2] = 1e300


def _no_last_observation(buffers: list[dict[str, Any]]) -> None:
    buffers[1]["observations"] = buffers[1]["observations"][:-1]


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        (_far_outside, r"dimension 0 lies in \[-?[\d.]+, 150\].*other units"),
        (_nan_reward, r"1 NaN or infinite rewards, in the episodes \[1\].*episode_filter"),
        (_infinite_observation, r"1 NaN or infinite observations, in the episodes \[\d\]"),
        (_too_large_for_float32, "1 NaN or infinite observations"),
        (_no_last_observation, r"Episode 1 .* is misaligned: \[4\] observations, 4 actions"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(defect: Any, message: str) -> None:
    buffers = random_episodes(2)
    defect(buffers)
    write_dataset("test/bad-v0", buffers)
    with pytest.raises(DatasetError, match=message):
        load("test/bad-v0")


def test_an_arrow_episode_without_its_last_observation_is_refused(root: Path) -> None:
    buffers = random_episodes(2)
    _no_last_observation(buffers)
    buffers[1]["infos"] = None
    write_dataset("test/bad-v0", buffers, data_format="arrow")
    with pytest.raises(DatasetError, match="Episode 1 .* is misaligned"):
        load("test/bad-v0")


def test_more_steps_than_the_metadata_states_is_refused(root: Path) -> None:
    write_dataset("test/bad-v0", random_episodes(2))
    edit_metadata(root, "test/bad-v0", total_steps=5)
    with pytest.raises(DatasetError, match="more steps than the 5"):
        load("test/bad-v0")
