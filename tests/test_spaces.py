"""Spaces through JSON and back, and what differs between two of them."""

from __future__ import annotations

import collections
import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fakes import GOAL, NESTED, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import observation_spaces

from gem_policy.errors import SpaceError
from gem_policy.spaces import (
    ObservationReader,
    action_box,
    describe_difference,
    from_json,
    observation_size,
    to_json,
)

Space = gym.spaces.Space[Any]


@given(observation_spaces())
@settings(max_examples=40)
def test_a_space_survives_json_to_the_bit(space: Space) -> None:
    again = from_json(json.loads(json.dumps(to_json(space), allow_nan=False, sort_keys=True)))
    assert again == space
    assert describe_difference(space, again) == []
    assert to_json(again) == to_json(space)


@given(observation_spaces(), st.integers(0, 999))
@settings(max_examples=40)
def test_rows_are_gymnasiums_flattening(space: Space, seed: int) -> None:
    one = sample(space, np.random.default_rng(seed))
    reader = ObservationReader(space)
    expected = gym.spaces.flatten(space, one).astype(np.float32)
    rows, batched = reader.read(one)
    assert not batched and rows.dtype == np.float32
    assert rows.shape == (1, observation_size(space)) == (1, gym.spaces.flatdim(space))
    if np.isfinite(expected).all():
        np.testing.assert_array_equal(rows[0], expected)
    again = from_json(json.loads(json.dumps(to_json(space), sort_keys=True)))
    np.testing.assert_array_equal(ObservationReader(again).read(one)[0], rows)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(3),
        gym.spaces.Dict(a=gym.spaces.Dict(b=gym.spaces.MultiBinary(2))),
        gym.spaces.Tuple([GOAL]),
    ],
    ids=["discrete", "nested", "tuple"],
)
def test_observations_that_are_no_boxes_are_refused_with_advice(space: Space) -> None:
    with pytest.raises(SpaceError, match="FlattenObservation"):
        ObservationReader(space)
    with pytest.raises(SpaceError, match="Only Box and Dict"):
        to_json(space)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(3),
        gym.spaces.MultiDiscrete([2, 2]),
        gym.spaces.Box(-1, 1, (2, 2), np.float32),
        gym.spaces.Box(-1, 1, (), np.float32),
        gym.spaces.Box(0, 5, (2,), np.int64),
        GOAL,
    ],
    ids=["discrete", "multi", "matrix", "scalar", "integers", "dict"],
)
def test_actions_that_are_no_vector_of_numbers_are_refused(space: Space) -> None:
    with pytest.raises(SpaceError, match="one-dimensional Box"):
        action_box(space)


def test_equal_spaces_do_not_differ_whatever_the_order_of_their_keys() -> None:
    turned = gym.spaces.Dict(collections.OrderedDict(reversed(list(GOAL.spaces.items()))))
    assert describe_difference(GOAL, turned) == []
    assert describe_difference(NESTED, NESTED) == []


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (gym.spaces.Box(-1, 1, (3,), np.float32), "expected shape (2,), got (3,)"),
        (gym.spaces.Box(-1, 1, (2,), np.float64), "expected dtype float32, got float64"),
        (gym.spaces.Box(-1, 2, (2,), np.float32), "expected other high bounds"),
        (gym.spaces.Box(-2, 1, (2,), np.float32), "expected other low bounds"),
        (GOAL, "expected Box"),
    ],
)
def test_each_difference_of_boxes_is_told(other: Space, told: str) -> None:
    (line,) = describe_difference(gym.spaces.Box(-1, 1, (2,), np.float32), other)
    assert line.startswith(told)


def test_differences_of_mappings_name_their_key() -> None:
    changed = dict(GOAL.spaces)
    del changed["desired_goal"]
    changed["extra"] = changed["observation"]
    changed["achieved_goal"] = gym.spaces.Box(-1, 1, (5,), np.float64)
    assert describe_difference(GOAL, gym.spaces.Dict(changed)) == [
        "key 'desired_goal' is missing",
        "key 'extra' is not expected",
        "achieved_goal: expected shape (2,), got (5,)",
    ]


def test_a_missing_entry_is_named_whatever_the_other_keys_are() -> None:
    one = {"observation": np.zeros(3, np.float32), 1: 0}
    with pytest.raises(SpaceError, match=r"has no entry .*; got \['1', 'observation'\]"):
        ObservationReader(GOAL).read(one)
