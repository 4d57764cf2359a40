"""What a checkpoint says of its training can be saved, whatever the dataset says of itself."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from fakes import tiny_checkpoint
from tiny_runs import SHORT, random_dataset, run

from gem_policy import checkpoint
from gem_policy.environments import evaluation_spec, make_spec
from gem_policy.errors import CheckpointError
from gem_policy.training.config import TrainConfig
from gem_policy.training.provenance import describe, finite


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
