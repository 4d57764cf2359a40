"""SB3's ``predict``, to the letter (the contract that every policy and baseline meets)."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import ACTIONS, BOX, GOAL, NESTED, SPACES, row_of, rows_of, sample, tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.policies import BasePolicy
from strategies import selections

from gem_policy.config import SelectionConfig
from gem_policy.errors import ConfigError, SpaceError
from gem_policy.mixture_predictor import MixturePredictor
from gem_policy.policy import GEMPolicy
from gem_policy.predictor import Predictor

each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
POLICIES = {name: tiny_policy(space) for name, space in SPACES.items()}
policies = st.sampled_from(list(POLICIES.values()))


def players(policy: GEMPolicy) -> list[Predictor]:
    return [policy, MixturePredictor(policy, "actor"), MixturePredictor(policy, "behavior")]


def observations(policy: Predictor, count: int, seed: int = 0) -> Any:
    return sample(policy.observation_space, np.random.default_rng(seed), (count,))


def convert(observation: Any, how: Any) -> Any:
    if isinstance(observation, Mapping):
        return {key: convert(value, how) for key, value in observation.items()}
    return how(observation)


# -- hostile surroundings ------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [True, False])
def test_numbers_that_overflow_the_networks_are_told_by_row(deterministic: bool) -> None:
    largest = np.finfo(np.float32).max
    batch = np.array([[0.1, 0.2, 0.3], [0.1, largest, 0.2]], np.float32)
    policy = tiny_policy()
    for player in players(policy):
        with pytest.raises(SpaceError, match=r"rows \[1\] overflow.*3.40282e\+38"):
            player.predict(batch, deterministic=deterministic)
        with pytest.raises(SpaceError, match=r"rows \[0\] overflow"):
            player.predict(batch[1], deterministic=deterministic)
        player.predict(batch[0], deterministic=deterministic)
    with pytest.raises(SpaceError, match="overflow"):
        policy.explain(batch[1])
    decision = policy.decide(torch.from_numpy(batch))
    assert decision.supported.tolist() == [True, False]
    assert decision.action.isnan().any(-1).tolist() == [False, True]


def test_autocast_of_the_caller_changes_nothing() -> None:
    policy = tiny_policy(network={"critic_lookahead": True})
    batch = observations(policy, 64)
    rows = torch.from_numpy(batch)
    actions = policy.scaler.invert(policy.mixture(rows).mean)
    expected = [policy.predict(batch, deterministic=True)[0], policy.decide(rows).action]
    judged = policy.assess(rows, actions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [policy.predict(batch, deterministic=True)[0], policy.decide(rows).action]
        again = policy.assess(rows, actions)
        assert (rows @ rows.T).dtype == torch.bfloat16  # it is as it was for the caller
    np.testing.assert_array_equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)
    torch.testing.assert_close(again.percentile, judged.percentile, rtol=0, atol=0)


def test_numpys_own_error_handling_does_not_matter() -> None:
    policy = tiny_policy()
    with np.errstate(all="raise"):
        policy.predict(np.array([1e-300, 0.0, 1.0]), deterministic=True)
        with pytest.raises(SpaceError, match="NaN or infinite"):
            policy.predict(np.array([1e300, 0.0, 1.0]), deterministic=True)


def test_a_seed_is_a_number_that_torch_takes() -> None:
    policy = tiny_policy()
    policy.set_random_seed(2**64 - 1)
    for wrong in ("a", 1.5, True, -1, 2**64):
        with pytest.raises(ConfigError, match="`seed` must be an integer >= 0"):
            inspect.unwrap(Predictor.set_random_seed)(policy, wrong)


# -- signature -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["predict", "__call__"])
def test_parameters_are_named_and_ordered_as_in_sb3(method: str) -> None:
    theirs = inspect.signature(BasePolicy.predict).parameters
    ours = inspect.signature(getattr(Predictor, method)).parameters
    assert list(ours) == list(theirs)
    if method == "predict":
        assert {k: p.default for k, p in ours.items()} == {k: p.default for k, p in theirs.items()}


def test_keywords_and_positions_mean_the_same() -> None:
    policy, one = POLICIES["box"], observations(POLICIES["box"], 1)
    starts = np.ones(1, dtype=bool)
    by_name = policy.predict(observation=one, state=None, episode_start=starts, deterministic=True)
    by_place = policy.predict(one, None, starts, True)
    np.testing.assert_array_equal(by_name[0], by_place[0])


def test_state_comes_back_as_it_went_in() -> None:
    state = (np.zeros(3),)
    for player in players(POLICIES["box"]):
        assert player.predict(observations(player, 2), state)[1] is state
        assert player.predict(observations(player, 2))[1] is None


def test_a_call_of_the_policy_is_its_deterministic_prediction() -> None:
    policy, batch = POLICIES["goal"], observations(POLICIES["goal"], 3)
    called, state = policy(batch, None, np.ones(3, dtype=bool))
    np.testing.assert_array_equal(called, policy.predict(batch, deterministic=True)[0])
    assert state is None


# -- what goes in --------------------------------------------------------------------------------


@each_space
def test_one_observation_gives_one_action_and_a_batch_a_batch(space: gym.Space[Any]) -> None:
    policy = tiny_policy(space)
    for player in players(policy):
        for deterministic in (True, False):
            batch = observations(player, 4)
            many, _ = player.predict(batch, deterministic=deterministic)
            one, _ = player.predict(row_of(batch, 0), deterministic=deterministic)
            none, _ = player.predict(observations(player, 0), deterministic=deterministic)
            assert many.shape == (4, 2) and one.shape == (2,) and none.shape == (0, 2)
            assert many.dtype == one.dtype == none.dtype == ACTIONS.dtype
            assert isinstance(one, np.ndarray)


@each_space
@pytest.mark.parametrize(
    "how",
    [
        lambda x: x.astype(np.float64),
        lambda x: torch.from_numpy(x.copy()),
        lambda x: x.tolist(),
        lambda x: np.asfortranarray(x),
        lambda x: np.broadcast_to(x, x.shape),  # not writable
    ],
    ids=["float64", "tensor", "list", "fortran", "read-only"],
)
def test_the_same_numbers_in_any_form_give_the_same_action(space: gym.Space[Any], how: Any) -> None:
    policy = tiny_policy(space)
    for observation in (observations(policy, 3), row_of(observations(policy, 1), 0)):
        plain, _ = policy.predict(observation, deterministic=True)
        other, _ = policy.predict(convert(observation, how), deterministic=True)
        np.testing.assert_array_equal(plain, other)


@pytest.mark.parametrize("name", ["goal", "nested", "matrix"])
def test_observations_are_flattened_as_gymnasium_does(name: str) -> None:
    policy, space = POLICIES[name], SPACES[name]
    flat = gym.spaces.flatten_space(space)
    twin = tiny_policy(gym.spaces.Box(-np.inf, np.inf, flat.shape, np.float64))
    for seed in range(5):
        one = sample(space, np.random.default_rng(seed))
        expected, _ = twin.predict(gym.spaces.flatten(space, one), deterministic=True)
        np.testing.assert_array_equal(policy.predict(one, deterministic=True)[0], expected)


def test_the_order_of_the_keys_given_does_not_matter() -> None:
    policy, one = POLICIES["goal"], row_of(observations(POLICIES["goal"], 1), 0)
    turned = dict(reversed(list(one.items())))
    assert list(turned) != list(one)
    np.testing.assert_array_equal(
        policy.predict(one, deterministic=True)[0], policy.predict(turned, deterministic=True)[0]
    )


def test_the_observation_is_not_changed_nor_kept() -> None:
    policy, batch = tiny_policy(), observations(POLICIES["box"], 2)
    before = batch.copy()
    first, _ = policy.predict(batch, deterministic=True)
    np.testing.assert_array_equal(batch, before)
    kept = first.copy()
    batch[:] = 7  # SB3's vector environments write into one buffer
    policy.predict(batch, deterministic=True)
    np.testing.assert_array_equal(first, kept)


# -- what is refused -----------------------------------------------------------------------------


@each_space
def test_the_tuple_of_reset_is_refused_with_advice(space: gym.Space[Any]) -> None:
    policy = tiny_policy(space)
    with pytest.raises(SpaceError, match=r"(?s)tuple.*obs, info = env.reset\(\).*pass `obs`"):
        policy.predict((row_of(observations(policy, 1), 0), {}))
    assert issubclass(SpaceError, ValueError)  # which is what SB3 raises


@pytest.mark.parametrize("shape", [(), (2,), (4,), (3, 2), (1, 1, 3), (3, 3, 3), (0,)])
def test_a_wrong_shape_names_what_came_and_both_that_fit(shape: tuple[int, ...]) -> None:
    expected = rf"shape {re.escape(str(shape))}, expected \(3,\) for one.*\(batch, 3"
    with pytest.raises(SpaceError, match=expected):
        POLICIES["box"].predict(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("place", [0, 2])
def test_numbers_that_are_not_finite_are_named_by_dimension(value: float, place: int) -> None:
    batch = np.zeros((4, 3))
    batch[1, place] = value
    with pytest.raises(SpaceError, match=rf"NaN or infinite.*dimensions \[{place}\]"):
        POLICIES["box"].predict(batch)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3, np.complex64),
        np.array(["a", "b", "c"]),
        np.array([None, 1, 2], dtype=object),
        np.zeros(3, "datetime64[s]"),
    ],
    ids=["complex", "string", "object", "datetime"],
)
def test_what_holds_no_real_numbers_is_refused(value: Any) -> None:
    with pytest.raises(SpaceError, match=r"real numbers, got dtype .*float32 and shape \(3,\)"):
        POLICIES["box"].predict(value)


@pytest.mark.parametrize(
    "value",
    [[[1.0, 2.0, 3.0], [1.0]], torch.zeros(3, requires_grad=True), None, "abc", {"a": 1}],
    ids=["ragged", "with gradient", "none", "text", "mapping"],
)
def test_what_is_no_array_is_refused(value: Any) -> None:
    with pytest.raises(SpaceError, match="The observation"):
        POLICIES["box"].predict(value)


def test_a_missing_key_is_named_and_what_came_listed() -> None:
    one = row_of(observations(POLICIES["goal"], 1), 0)
    del one["desired_goal"]
    with pytest.raises(SpaceError, match=r"no entry 'desired_goal'; got \['achieved_goal', 'obs"):
        POLICIES["goal"].predict(one)


def test_a_missing_key_of_a_nested_mapping_is_named_with_its_path() -> None:
    one = row_of(observations(POLICIES["nested"], 1), 0)
    del one["arm"]["wrist"]
    with pytest.raises(SpaceError, match=r"no entry 'arm/wrist'; got \['elbow'\]"):
        POLICIES["nested"].predict(one)
    one["arm"] = np.zeros(3)
    with pytest.raises(SpaceError, match=r"no entry 'arm/wrist'; got ndarray"):
        POLICIES["nested"].predict(one)


@pytest.mark.parametrize("path", [(), ("arm",)])
def test_an_unknown_key_is_refused_as_in_sb3(path: tuple[str, ...]) -> None:
    one = row_of(observations(POLICIES["nested"], 1), 0)
    place = one
    for key in path:
        place = place[key]
    place["surplus"] = np.zeros(1)
    with pytest.raises(SpaceError, match="surplus"):
        POLICIES["nested"].predict(one)


def test_an_array_for_a_mapping_is_refused_with_the_keys() -> None:
    with pytest.raises(SpaceError, match=r"keys \['achieved_goal', 'desired_goal', 'observation'"):
        POLICIES["goal"].predict(np.zeros(8))


def test_entries_that_disagree_about_the_batch_are_listed() -> None:
    one = observations(POLICIES["goal"], 2)
    one["achieved_goal"] = one["achieved_goal"][:1]
    with pytest.raises(SpaceError, match="achieved_goal has batch 1.*observation has batch 2"):
        POLICIES["goal"].predict(one)
    one["achieved_goal"] = one["achieved_goal"][0]
    with pytest.raises(SpaceError, match="achieved_goal has no batch axis"):
        POLICIES["goal"].predict(one)


# -- what comes out ------------------------------------------------------------------------------


@given(policies, selections, st.integers(0, 999), st.booleans())
@settings(max_examples=40)
def test_the_action_lies_in_the_space_whatever_the_settings(
    policy: GEMPolicy, selection: SelectionConfig, seed: int, deterministic: bool
) -> None:
    changed = tiny_policy(policy.observation_space, selection=selection, seed=seed)
    for player in players(changed):
        batch = convert(observations(player, 2, seed), lambda x: (x * 50).astype(x.dtype))
        for action in player.predict(batch, deterministic=deterministic)[0]:
            assert player.action_space.contains(action)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_action_lies_in_the_space_for_bounds_that_float32_rounds(dtype: Any) -> None:
    bounds = np.array([0.1, 0.7, 1 / 3], dtype)
    space = gym.spaces.Box(-bounds, bounds, dtype=dtype)
    policy = tiny_policy(action_space=space)
    batch = observations(policy, 40) * 100
    extremes = [policy.predict(batch, deterministic=d)[0] for d in (True, False)]
    for action in np.concatenate(extremes):
        assert action.dtype == dtype and space.contains(action)
    assert np.isclose(np.abs(np.concatenate(extremes)), bounds, rtol=1e-2).any(), "none at an end"


@given(policies, st.permutations(range(4)), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=25)
def test_deterministic_answers_do_not_depend_on_the_batch(
    policy: GEMPolicy, order: list[int], count: int, seed: int
) -> None:
    batch = observations(policy, 4, seed)
    chosen = order[:count]
    for player in players(policy):
        alone = [player.predict(row_of(batch, i), deterministic=True)[0] for i in chosen]
        together, _ = player.predict(rows_of(batch, chosen), deterministic=True)
        np.testing.assert_array_equal(np.stack(alone), together)


@given(policies, st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=25)
def test_a_batch_decided_at_once_is_the_same_up_to_rounding(
    policy: GEMPolicy, count: int, seed: int
) -> None:
    batch = observations(policy, count, seed)
    for player in players(policy):
        careful, _ = player.predict(batch, deterministic=True)
        with decided_at_once(player) as sizes:
            at_once, _ = player.predict(batch, deterministic=True)
        assert sizes == [count]
        np.testing.assert_allclose(at_once, careful, rtol=1e-4, atol=1e-4)


@contextlib.contextmanager
def decided_at_once(player: Predictor) -> Iterator[list[int]]:
    """The player without its row by row, and how many rows each call of `act` is given."""
    sizes: list[int] = []
    act = player.act

    def watched(rows: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        sizes.append(len(rows))
        return act(rows, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(player, "act", watched)
        patch.setattr(player, "row_by_row", False)
        yield sizes


def test_deterministic_answers_do_not_depend_on_what_was_asked_before() -> None:
    policy, fresh = tiny_policy(GOAL), tiny_policy(GOAL)
    batch, other = observations(policy, 3), observations(policy, 8, seed=1)
    policy.predict(other, deterministic=False)
    policy.predict(other, deterministic=True)
    policy.explain(row_of(other, 0))
    policy.set_random_seed(5)
    np.testing.assert_array_equal(
        policy.predict(batch, deterministic=True)[0], fresh.predict(batch, deterministic=True)[0]
    )


@pytest.mark.parametrize("deterministic", [True, False])
def test_global_random_state_neither_matters_nor_moves(deterministic: bool) -> None:
    answers = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        policy = tiny_policy()
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
        answers.append(policy.predict(observations(policy, 9), deterministic=deterministic)[0])
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index]
    np.testing.assert_array_equal(*answers)


def test_random_answers_differ_and_a_seed_brings_them_back() -> None:
    for player in players(tiny_policy()):
        one = row_of(observations(player, 1), 0)
        player.set_random_seed(3)
        first = np.stack([player.predict(one)[0] for _ in range(5)])
        assert len(np.unique(first, axis=0)) > 1
        player.set_random_seed(3)
        again = np.stack([player.predict(one)[0] for _ in range(5)])
        np.testing.assert_array_equal(first, again)
        player.set_random_seed(4)
        other = np.stack([player.predict(one)[0] for _ in range(5)])
        assert (other != first).any()
        player.set_random_seed(None)
        assert player.predict(one)[0].shape == (2,)


def test_two_policies_draw_from_generators_of_their_own() -> None:
    first, second = tiny_policy(), tiny_policy()
    one = row_of(observations(first, 1), 0)
    alone = [tiny_policy().predict(one)[0] for _ in range(1)]
    second.predict(one)
    second.predict(one)
    np.testing.assert_array_equal(first.predict(one)[0], alone[0])


def test_no_gradient_is_recorded_and_no_network_is_in_training_mode() -> None:
    policy = tiny_policy()
    policy.predict(observations(policy, 2))
    for module in (policy.actor, policy.behavior, policy.critics):
        assert not module.training
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_spaces_are_the_checkpoints() -> None:
    for space in (BOX, GOAL, NESTED):
        for player in players(tiny_policy(space)):
            assert player.observation_space == space
            assert player.action_space == ACTIONS
