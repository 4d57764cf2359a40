"""The comparison with IQL: the same transitions out, the exported actor back in."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import BOX, GOAL, sample, tiny_policy
from scripts import script
from small_datasets import GOALS, random_episode, slow_transitions, write_dataset

from gem_policy.errors import CheckpointError, ConfigError
from gem_policy.report import STARTS
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import load

compare, export = script("iql/compare.py"), script("iql/export.py")

WIDE = gym.spaces.Box(np.float32([-2, 0]), np.float32([2, 1]), dtype=np.float32)
LENGTHS = (4, 1, 6, 3, 5, 2, 7, 3)


def write_tiny(name: str) -> Any:
    """Episodes of several lengths, every second one terminated."""
    rng = np.random.default_rng(3)
    episodes = [
        random_episode(length, rng, GOALS, WIDE, terminated=number % 2 == 0)
        for number, length in enumerate(LENGTHS)
    ]
    return write_dataset(name, episodes, observation_space=GOALS, action_space=WIDE)


@pytest.mark.parametrize("terminal_reward", [None, 0.5])
def test_export_gives_the_training_transitions_one_by_one(terminal_reward):
    name = f"test/iql-{'plain' if terminal_reward is None else 'ends'}-v0"
    slow = slow_transitions(write_tiny(name))
    config = TrainConfig(holdout=0.25, seed=1, terminal_reward=terminal_reward)
    made = export.arrays(load(name), config)
    held_out = 2
    numbers = load(name).split(0.75, 1)[0].numbers.tolist()
    assert len(numbers) == len(LENGTHS) - held_out
    expected = [step for step in slow if step["episode"] in numbers]
    assert len(made["rewards"]) == len(expected) > 0
    low, high = WIDE.low, WIDE.high
    ends = 0
    for t, step in enumerate(expected):
        np.testing.assert_allclose(made["observations"][t], step["observations"], rtol=1e-6)
        np.testing.assert_allclose(
            made["next_observations"][t], step["next_observations"], rtol=1e-6
        )
        action = 2 * (step["actions"] - low) / (high - low) - 1
        np.testing.assert_allclose(made["actions"][t], action, atol=1e-6)
        np.testing.assert_allclose(made["rewards"][t], step["rewards"], rtol=1e-6)
        end = step["terminated"] or (terminal_reward is not None and step["rewards"] >= 0.5)
        assert bool(made["terminated"][t]) == end
        ends += end
        assert numbers[made["episode"][t]] == step["episode"]
    assert 0 < ends < len(expected)


def test_next_observation_is_the_one_that_follows():
    write_tiny("test/iql-order-v0")
    made = export.arrays(load("test/iql-order-v0"), TrainConfig(holdout=0.25))
    inside = made["episode"][1:] == made["episode"][:-1]
    assert inside.sum() > 5 and (~inside).sum() == made["episode"][-1] > 1
    followed = (made["next_observations"][:-1] == made["observations"][1:]).all(1)
    np.testing.assert_array_equal(followed, inside)


def hand_arrays(sizes: tuple[int, ...]) -> dict[str, Any]:
    """Layers with random weights, large enough for tanh to bend."""
    rng = np.random.default_rng(0)
    out = {}
    for i, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        out[f"weight_{i}"] = rng.normal(size=(outputs, inputs)).astype(np.float32)
        out[f"bias_{i}"] = rng.normal(size=outputs).astype(np.float32)
    return out


def by_loops(arrays: dict[str, Any], row: Any, box: gym.spaces.Box) -> list[float]:
    """The actor neuron by neuron in Python's floats, then from [-1, 1] to the box."""
    x = [float(v) for v in row]
    for i in range(3):
        weight, bias = arrays[f"weight_{i}"], arrays[f"bias_{i}"]
        y = [
            sum(float(w) * v for w, v in zip(line, x, strict=True)) + float(b)
            for line, b in zip(weight, bias, strict=True)
        ]
        x = [max(v, 0.0) for v in y] if i < 2 else [float(np.tanh(v)) for v in y]
    bounds = zip(x, box.low.tolist(), box.high.tolist(), strict=True)
    return [low + (v + 1) / 2 * (high - low) for v, low, high in bounds]


@pytest.mark.parametrize("space", [BOX, GOAL], ids=["box", "goal"])
def test_array_actor_computes_what_the_arrays_say(space):
    policy = tiny_policy(space)
    arrays = hand_arrays((gym.spaces.flatdim(space), 7, 5, 2))
    actor = compare.ArrayActor(arrays, policy)
    observations = sample(space, np.random.default_rng(1), (6,))
    actions, state = actor.predict(observations, deterministic=True)
    assert actions.shape == (6, 2) and state is None and np.ptp(actions, axis=0).min() > 0.01
    rows = (
        observations
        if space is BOX
        else np.concatenate([observations[key] for key in space.spaces], axis=1)
    )
    for action, row in zip(actions, rows, strict=True):
        np.testing.assert_allclose(action, by_loops(arrays, row, policy.action_space), atol=1e-5)
    sampled, _ = actor.predict(observations, deterministic=False)
    np.testing.assert_allclose(sampled, actions, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("bias_1"),
        lambda arrays: arrays.clear(),
        lambda arrays: arrays.update(hand_arrays((4, 7, 5, 2))),
        lambda arrays: arrays.update(hand_arrays((3, 7, 5, 3))),
    ],
    ids=["bias missing", "empty", "other observations", "other actions"],
)
def test_actor_that_does_not_fit_is_refused(change):
    arrays = hand_arrays((3, 7, 5, 2))
    compare.ArrayActor(dict(arrays), tiny_policy())  # fits before the change
    change(arrays)
    with pytest.raises(CheckpointError):
        compare.ArrayActor(arrays, tiny_policy())


def test_actor_is_read_with_what_its_file_says(tmp_path):
    arrays = hand_arrays((3, 7, 5, 2))
    np.savez(tmp_path / "iql.npz", about=json.dumps({"updates": 5}), **arrays)
    actor, about = compare.read_actor(tmp_path / "iql.npz", tiny_policy())
    assert about == {"updates": 5}
    row = np.ones((1, 3), np.float32)
    expected = compare.ArrayActor(arrays, tiny_policy()).act(torch.from_numpy(row), None)
    assert torch.equal(actor.act(torch.from_numpy(row), None), expected)


def test_other_training_data_is_refused():
    train = {"seed": 0, "holdout": 0.02, "terminal_reward": None}
    policy = tiny_policy(provenance={"dataset_id": "test/a-v0", "train": train})
    about = {"dataset": "test/a-v0", "split_seed": 0, "holdout": 0.02, "terminal_reward": None}
    compare.same_data(policy, about)
    for key, value in (("dataset", "test/b-v0"), ("split_seed", 1), ("terminal_reward", 1.0)):
        with pytest.raises(ConfigError, match=key):
            compare.same_data(policy, {**about, key: value})


def test_a_row_of_iql_is_taken_from_a_record_of_the_same_starts(tmp_path: Path):
    about = {"dataset": "test/a-v0", "split_seed": 0, "holdout": 0.02, "terminal_reward": None}
    record = {"dataset_id": "test/a-v0", "updates": 5, "episodes": 3, "seed": 7}
    record |= {"envs": 2, "label": "x", "starts": STARTS}
    path = tmp_path / "iql.json"
    compare.merge({**record, "iql": about, "rows": []}, path)
    train = {"seed": 0, "holdout": 0.02, "terminal_reward": None}
    policy = tiny_policy(provenance={"dataset_id": "test/a-v0", "train": train})
    assert compare.played_before(path, policy, 5, 3, 7, 2)["label"] == "x"
    for asked in ((6, 3, 7, 2), (5, 4, 7, 2), (5, 3, 8, 2), (5, 3, 7, 1)):
        with pytest.raises(ConfigError, match="no record"):
            compare.played_before(path, policy, *asked)
    other = tiny_policy(provenance={"dataset_id": "test/a-v0", "train": {**train, "seed": 1}})
    with pytest.raises(ConfigError, match="split_seed"):
        compare.played_before(path, other, 5, 3, 7, 2)
    earlier = {**record, "starts": None, "iql": about, "rows": []}
    compare.merge({**earlier, "label": "a"}, path)
    assert compare.played_before(path, policy, 5, 3, 7, 2)["label"] == "x", "of the same starts"
    compare.merge({**record, "iql": about, "rows": []}, path)
    compare.merge({**record, "label": "y", "iql": {**about, "split_seed": 1}, "rows": []}, path)
    found = [compare.played_before(path, either, 5, 3, 7, 2)["label"] for either in (policy, other)]
    assert found == ["x", "y"]


@pytest.mark.parametrize("starts", [None, STARTS])
def test_what_is_told_of_a_row_of_before_says_what_its_starts_were(tmp_path: Path, starts: Any):
    about = {"dataset": "test/a-v0", "split_seed": 0, "holdout": 0.02, "terminal_reward": None}
    record = {"dataset_id": "test/a-v0", "updates": 5, "episodes": 3, "seed": 7, "envs": 2}
    record |= {"label": "x", "machine": {}, "batched": True, "iql": about}
    row = {"label": compare.IQL}
    if starts:
        record["starts"] = starts  # reports of before have none
    compare.merge({**record, "rows": [{"label": "GEM"}, row]}, tmp_path / "iql.json")
    train = {"seed": 0, "holdout": 0.02, "terminal_reward": None}
    policy = tiny_policy(provenance={"dataset_id": "test/a-v0", "train": train})
    options = argparse.Namespace(json=tmp_path / "iql.json", episodes=3, seed=7, envs=2)
    found, told = compare.row_of_iql("5", policy, options)
    assert found == row
    assert told["iql_row_from"] == {
        "label": "x",
        "machine": {},
        "batched": True,
        "starts": starts,
    }
    # Handed on once more, it is still the row of that record.
    compare.merge({**record, **told, "label": "z", "starts": STARTS, "rows": [row]}, options.json)
    assert compare.row_of_iql("5", policy, options)[1]["iql_row_from"]["label"] == "x"


def test_records_of_other_runs_are_kept(tmp_path: Path):
    path = tmp_path / "iql.json"

    def put(dataset: str, updates: int, value: int) -> None:
        record = {"dataset_id": dataset, "updates": updates, "label": "", "value": value}
        compare.merge(record, path)

    put("b", 20, 1)
    put("a", 20, 2)
    put("b", 20, 3)
    put("b", 100, 4)
    found = [(r["dataset_id"], r["value"]) for r in json.loads(path.read_text())["records"]]
    assert sorted(found) == [("a", 2), ("b", 3), ("b", 4)]
