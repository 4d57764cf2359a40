"""What a checkpoint says of its training can be saved, whatever the dataset says of itself."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from fakes import tiny_checkpoint, tiny_policy
from tiny_runs import SHORT, random_dataset, run

from gem_policy import checkpoint
from gem_policy.env_specs import make_spec
from gem_policy.environments import evaluation_spec
from gem_policy.errors import CheckpointError
from gem_policy.training.config import TrainConfig
from gem_policy.training.provenance import describe, finite
from gem_policy.wrappers import SuccessInfo, SupportMonitor, SupportShield


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")
def test_an_infinite_argument_of_the_environment_survives(tmp_path: Path) -> None:
    env = gym.make("Hopper-v5", healthy_z_range=(0.7, math.inf))
    assert env.spec is not None
    text = env.spec.to_json()
    env.close()
    data = random_dataset(tmp_path / "data", [9] * 5)
    data = replace(data, env_spec=text, recipe={"scale": math.nan}, ref_min=math.nan)
    run(data, tmp_path / "out")
    told = checkpoint.load(tmp_path / "out").provenance
    assert told["dataset_recipe"] == {"scale": None} and told["reference_min"] is None
    made = make_spec(evaluation_spec(told))
    assert made.spec is not None and made.spec.kwargs["healthy_z_range"] == [0.7, math.inf]
    made.close()


def test_an_ordinary_environment_is_an_object(tmp_path: Path) -> None:
    env = gym.make("Hopper-v5")
    assert env.spec is not None
    data = replace(random_dataset(tmp_path, [9] * 5), env_spec=env.spec.to_json())
    env.close()
    told = describe(data, TrainConfig())
    assert told["env_spec"]["id"] == told["eval_env_spec"]["id"] == "Hopper-v5"
    assert describe(replace(data, env_spec=None), SHORT)["eval_env_spec"] is None


def test_policies_that_made_the_data_are_no_part_of_the_environment(tmp_path: Path) -> None:
    """Neither is where their files lie, and the new policy does not need them."""
    env = gym.make("InvertedPendulum-v5", max_episode_steps=6)
    assert isinstance(env.action_space, gym.spaces.Box)
    policy = tiny_policy(env.observation_space, env.action_space)
    path = policy.save(tmp_path / "secret_folder" / "model.safetensors")
    guarded = SuccessInfo(SupportMonitor(SupportShield(env, str(path), percentile=25.0), str(path)))
    assert guarded.spec is not None
    text = guarded.spec.to_json()
    guarded.close()
    told = describe(replace(random_dataset(tmp_path, [9] * 5), env_spec=text), TrainConfig())
    assert "secret_folder" not in json.dumps(told)
    # Files of before say it still; it is read without.
    for provenance in (told, {"eval_env_spec": text}):
        made = make_spec(evaluation_spec(provenance))
        assert isinstance(made, SuccessInfo)
        assert "Support" not in str(made) and "TimeLimit" in str(made)
        made.close()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, 1.5),
        (math.inf, None),
        (-math.inf, None),
        ("Infinity", "Infinity"),
        (None, None),
        (True, True),
        ({"a": [1, math.nan, {"b": (math.inf, "c")}]}, {"a": [1, None, {"b": [None, "c"]}]}),
    ],
)
def test_finite_leaves_all_but_what_json_has_not(value: Any, expected: Any) -> None:
    assert finite(value) == expected


def test_a_provenance_that_is_no_json_is_told(tmp_path: Path) -> None:
    for wrong in (math.nan, object()):
        made = replace(tiny_checkpoint(), provenance={"a": wrong})
        with pytest.raises(CheckpointError, match="are no JSON"):
            checkpoint.save(made, tmp_path / "a.safetensors")
        assert not (tmp_path / "a.safetensors").exists()
