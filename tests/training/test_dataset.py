from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_datasets import (
    ACTIONS,
    GOALS,
    NESTED,
    OBSERVATIONS,
    data_folder,
    random_episode,
    random_episodes,
    slow_transitions,
    write_dataset,
)

from gem_policy.errors import DatasetError
from gem_policy.training import dataset as module
from gem_policy.training.dataset import Dataset, EpisodeSummary, load
from gem_policy.training.doctor import examine

pytestmark = pytest.mark.usefixtures("root")
FORMATS = ("hdf5", "arrow", "parquet")


def assert_equals_slow_reader(loaded: Dataset, slow: list[dict[str, Any]]) -> None:
    batch, data = loaded.transitions.all(), loaded.transitions
    assert len(data) == len(slow)
    for name in ("observations", "next_observations", "actions", "rewards"):
        expected = np.stack([step[name] for step in slow]).astype(np.float32)
        np.testing.assert_array_equal(getattr(batch, name).numpy(), expected, err_msg=name)
    for name in ("terminated", "truncated", "episode"):
        assert getattr(data, name).tolist() == [step[name] for step in slow], name


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("space", [OBSERVATIONS, GOALS, NESTED], ids=["box", "goal", "nested"])
def test_every_format_and_space_agrees_with_a_slow_reader(
    data_format: str, space: gym.Space[Any]
) -> None:
    buffers = random_episodes(3, observation_space=space)
    buffers[1] = random_episode(1, np.random.default_rng(1), space, terminated=True)
    written = write_dataset(
        "test/any-v0", buffers, observation_space=space, data_format=data_format
    )
    assert_equals_slow_reader(load("test/any-v0"), slow_transitions(written))


@given(
    shapes=st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=2, max_size=5),
    data_format=st.sampled_from(FORMATS),
    seed=st.integers(0, 2**16),
)
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_lengths_and_ends_agree_with_a_slow_reader(
    root: Path, shapes: list[tuple[int, bool]], data_format: str, seed: int
) -> None:
    shutil.rmtree(root / "test", ignore_errors=True)
    rng = np.random.default_rng(seed)
    buffers = [random_episode(n, rng, GOALS, terminated=ends) for n, ends in shapes]
    written = write_dataset(
        "test/drawn-v0", buffers, observation_space=GOALS, data_format=data_format
    )
    assert_equals_slow_reader(load("test/drawn-v0"), slow_transitions(written))


def test_a_format_of_the_future_goes_through_minari(monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_dataset(
        "test/any-v0", random_episodes(3, observation_space=NESTED), observation_space=NESTED
    )
    from gem_policy.training import storages

    def through_minari(folder: Path, _: str, *rest: Any) -> Any:
        return storages.read_episodes(folder, "unheard-of", *rest)

    monkeypatch.setattr(module, "read_episodes", through_minari)
    assert_equals_slow_reader(load("test/any-v0"), slow_transitions(written))


def test_what_a_dataset_says_about_itself_comes_along() -> None:
    write_dataset(
        "test/any-v0",
        random_episodes(2),
        env="Pendulum-v1",
        eval_env="Pendulum-v1",
        ref_min_score=1.0,
        ref_max_score=3.0,
        description="made for a test",
        author="somebody",
    )
    data = load("test/any-v0")
    assert data.id == "test/any-v0"
    assert json.loads(data.env_spec or "")["id"] == "Pendulum-v1"
    assert json.loads(data.eval_env_spec or "")["id"] == "Pendulum-v1"
    assert (data.ref_min, data.ref_max) == (1.0, 3.0)
    assert data.description == "made for a test"
    assert data.metadata["author"] == ["somebody"]
    assert data.observation_space == OBSERVATIONS
    assert data.action_space == ACTIONS


def test_a_filter_keeps_whole_episodes_while_reading_and_afterwards() -> None:
    write_dataset("test/any-v0", random_episodes(5))
    whole = load("test/any-v0")

    def wanted(episode: EpisodeSummary) -> bool:
        return episode.number in (1, 4)

    read, filtered = load("test/any-v0", episode_filter=wanted), whole.filter(wanted)
    assert read.numbers.tolist() == filtered.numbers.tolist() == [1, 4]
    assert read.transitions.lengths.tolist() == [4, 7]
    for name, tensor in vars(read.transitions).items():
        assert torch.equal(tensor, getattr(filtered.transitions, name)), name


def test_summaries_say_what_each_episode_was() -> None:
    buffers = random_episodes(2)
    buffers[1]["terminations"][-1], buffers[1]["truncations"][-1] = True, False
    write_dataset("test/any-v0", buffers)
    first, second = load("test/any-v0").episodes()
    assert (first.number, first.steps, first.terminated, first.truncated) == (0, 3, False, True)
    assert (second.number, second.steps, second.terminated, second.truncated) == (
        1,
        4,
        True,
        False,
    )
    assert first.total_reward == pytest.approx(buffers[0]["rewards"].sum(), rel=1e-6)


@given(fraction=st.floats(0.01, 0.99), seed=st.integers(0, 100))
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_split_is_a_partition_that_depends_on_its_seed_only(
    root: Path, fraction: float, seed: int
) -> None:
    if not data_folder(root, "test/any-v0").exists():
        write_dataset("test/any-v0", random_episodes(7))
    data = load("test/any-v0")
    first, second = data.split(fraction, seed)
    again, _ = data.split(fraction, seed)
    assert sorted(first.numbers.tolist() + second.numbers.tolist()) == list(range(7))
    assert first.numbers.tolist() == again.numbers.tolist()
    assert len(first.numbers) == min(max(round(7 * fraction), 1), 6)


def test_a_split_at_zero_or_one_is_refused() -> None:
    write_dataset("test/any-v0", random_episodes(2))
    with pytest.raises(DatasetError, match="between 0 and 1"):
        load("test/any-v0").split(1.0, seed=0)
    with pytest.raises(DatasetError, match="needs 2"):
        load("test/any-v0").filter(lambda episode: episode.number == 0).split(0.5, seed=0)


def test_a_single_episode_is_refused() -> None:
    write_dataset("test/bad-v0", random_episodes(1))
    with pytest.raises(DatasetError, match=r"1 episode\(s\); training needs 2"):
        load("test/bad-v0")


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({"action_space": gym.spaces.Discrete(3)}, "Discrete action space.*continuous"),
        (
            {"action_space": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)},
            "finite bounds.*ActionWrapper class of your own",
        ),
        (
            {"action_space": gym.spaces.Box(-1e39, 1e39, (2,), np.float64)},
            "finite bounds, as float32 too",
        ),
        ({"action_space": gym.spaces.Box(-3, 3, (2,), np.int64)}, "int64.*expected floats"),
        (
            {"action_space": gym.spaces.Box(*np.float32([[-1, 0.5], [1, 0.5]]))},
            r"low < high.*Leave out the dimensions \[1\]",
        ),
        ({"action_space": gym.spaces.Box(-1, 1, (2, 3), np.float32)}, r"shape \(2, 3\).*one axis"),
        ({"action_space": gym.spaces.Box(-1, 1, (), np.float32)}, r"shape \(\).*one axis"),
        (
            {"observation_space": gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)},
            "image of shape .32, 32, 3.",
        ),
        (
            {"observation_space": gym.spaces.Dict({"mode": gym.spaces.Discrete(2)})},
            "observation entry `mode` is a Discrete space",
        ),
    ],
)
def test_spaces_that_cannot_be_trained_on_are_refused(spaces: dict[str, Any], message: str) -> None:
    write_dataset("test/bad-v0", random_episodes(2, **spaces), **spaces)
    with pytest.raises(DatasetError, match=message):
        load("test/bad-v0")
    report = examine("test/bad-v0", simulate=False)
    assert "error" in [finding.severity for finding in report.findings]


def test_a_missing_array_or_episode_is_named(root: Path) -> None:
    write_dataset("test/bad-v0", random_episodes(2))
    with h5py.File(data_folder(root, "test/bad-v0") / "main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
    with pytest.raises(DatasetError, match="Episode 1 of 2 cannot be read"):
        load("test/bad-v0")


def test_a_truncated_file_is_refused(root: Path) -> None:
    write_dataset("test/bad-v0", random_episodes(2))
    path = data_folder(root, "test/bad-v0") / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DatasetError, match="cannot be opened.*download or make"):
        load("test/bad-v0")
