"""What every wrapper keeps: Gymnasium's and SB3's checks, specs, references, reset before step."""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import Autoreset, FlattenObservation, NormalizeObservation
from wrappers_fakes import (
    ACTIONS,
    GOALS,
    GoalPond,
    Pond,
    plain,
    random_policy,
    roll,
    write_policy,
)

from gem_policy import GEMPolicy, wrappers
from gem_policy.errors import CheckpointError, ConfigError, GEMError, GEMWarning, SpaceError
from gem_policy.wrappers import vector
from gem_policy.wrappers.policy_wrapper import read_numbers

UNIT = Box(-1.0, 1.0, (2,), np.float32)
SINGLES = [getattr(wrappers, name) for name in wrappers.__all__]
GUARDS = [wrappers.CandidateChoice, wrappers.SupportMonitor, wrappers.SupportShield]
OTHER_ARGUMENTS = {
    "SupportShield": {"percentile": 12.5, "mode": "nearest"},
    "CandidateChoice": {"candidates": 3},
    "SuccessInfo": {"ever": False},
}


def arguments(wrapper, policy):
    own = OTHER_ARGUMENTS.get(wrapper.__name__, {})
    return own if wrapper is wrappers.SuccessInfo else {"policy": policy} | own


def make_environment(kind):
    if kind == "pond":
        return gym.make("GemUnitPond-v0")
    if kind == "maze":
        pytest.importorskip("gymnasium_robotics")
        return gym.make("PointMaze_UMaze-v3")
    pytest.importorskip("mujoco")
    return gym.make("Hopper-v5")


@pytest.fixture(params=["pond", "maze", "hopper"])
def place(request, tmp_path):
    """An environment, and the path of a policy for it."""
    env = make_environment(request.param)
    path = write_policy(tmp_path, env.observation_space, env.action_space)
    yield env, path
    env.close()


class Reachable(gym.Wrapper):
    """Hands on `compute_reward`: SB3's check wants it as an attribute of the outermost wrapper.

    Gymnasium's wrappers forward no attributes, so that not even a bare `gym.make` of a goal
    environment passes that check; SB3 itself asks with `get_wrapper_attr`.
    """

    def compute_reward(self, *arguments):
        return self.env.get_wrapper_attr("compute_reward")(*arguments)


@pytest.mark.parametrize("wrapper", SINGLES)
def test_gymnasium_and_sb3_find_nothing(wrapper, place):
    env_checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env, path = place
    wrapped = wrapper(env, **arguments(wrapper, path))
    check_env(wrapped, skip_render_check=True)
    env_checker.check_env(Reachable(wrapped), skip_render_check=True)


@pytest.mark.parametrize("wrapper", SINGLES)
def test_spec_survives_json(wrapper, place):
    env, path = place
    wrapped = wrapper(env, **arguments(wrapper, path))
    text = wrapped.spec.to_json()
    again = gym.make(EnvSpec.from_json(text))
    assert type(again) is wrapper
    assert again.spec.to_json() == text
    assert again._saved_kwargs == wrapped._saved_kwargs
    actions = [wrapped.action_space.sample() for _ in range(4)]
    for one, other in zip(roll(wrapped, actions), roll(again, actions), strict=True):
        np.testing.assert_equal(one, other)
    again.close()


@pytest.mark.parametrize("wrapper", [w for w in SINGLES if w is not wrappers.SuccessInfo])
def test_loaded_policy_is_shared_and_recorded_by_its_source(wrapper, place, monkeypatch):
    env, path = place
    policy = GEMPolicy.load(path, candidates=3, device="cpu")
    monkeypatch.setattr(GEMPolicy, "__deepcopy__", lambda *_: pytest.fail("copied"), raising=False)
    wrapped = wrapper(env, **arguments(wrapper, policy))
    assert wrapped.policy is policy
    again = gym.make(EnvSpec.from_json(wrapped.spec.to_json()))
    assert again._saved_kwargs["policy"] == str(path)
    assert again.policy is not policy
    assert again.policy.selection == policy.selection
    copy.deepcopy(wrapped.spec)
    again.close()


@pytest.mark.parametrize("wrapper", [w for w in SINGLES if w is not wrappers.SuccessInfo])
def test_policy_from_nowhere_works_without_a_spec(wrapper):
    env = gym.make("GemPond-v0")
    wrapped = wrapper(env, **arguments(wrapper, random_policy()))
    assert wrapped.spec is None
    assert len(roll(wrapped, [wrapped.action_space.sample()])) == 2


def test_spec_around_the_same_wrapper_twice(tmp_path):
    path = write_policy(tmp_path)
    env = wrappers.SupportShield(wrappers.SupportMonitor(gym.make("GemPond-v0"), path), path, 5)
    env = wrappers.CandidateChoice(wrappers.SupportMonitor(env, path), path, 4)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert str(again) == str(env)


@pytest.mark.parametrize("home", [wrappers, vector])
@pytest.mark.parametrize("name", [n for n in wrappers.__all__ if n != "SuccessInfo"])
def test_what_is_no_policy_is_refused(home, name):
    env = gym.make("GemPond-v0") if home is wrappers else gym.make_vec("GemPond-v0", 2)
    wrapper = getattr(home, name)
    with pytest.raises(CheckpointError, match="no-such-policy"):
        wrapper(env, "no-such-policy")
    with pytest.raises(ConfigError, match="goes with the name"):
        wrapper(env, random_policy(), selection={"candidates": 3})
    with pytest.raises(SpaceError, match="observation"):
        wrapper(env, random_policy(Box(-1, 1, (4,)), ACTIONS))


@pytest.mark.parametrize("home", [wrappers, vector])
@pytest.mark.parametrize("wrapper", GUARDS)
def test_other_spaces_are_named(home, wrapper):
    env = Pond() if home is wrappers else gym.vector.SyncVectorEnv([Pond, Pond])
    with pytest.raises(SpaceError, match=r"high bounds.*MatchSpaces"):
        getattr(home, wrapper.__name__)(env, random_policy(action_space=UNIT))


@pytest.mark.parametrize("home", [wrappers, vector])
@pytest.mark.parametrize("wrapper", GUARDS)
def test_reset_comes_first(home, wrapper):
    env = Pond() if home is wrappers else gym.vector.SyncVectorEnv([Pond, Pond])
    wrapped = getattr(home, wrapper.__name__)(env, random_policy())
    with pytest.raises(GEMError, match="reset") as caught:
        wrapped.step(wrapped.action_space.sample())
    assert isinstance(caught.value, gym.error.ResetNeeded)


@pytest.mark.parametrize("home", [wrappers, vector])
@pytest.mark.parametrize("wrapper", [*GUARDS, wrappers.MatchSpaces])
def test_wrong_action_says_its_shape(home, wrapper):
    env = Pond() if home is wrappers else gym.vector.SyncVectorEnv([Pond, Pond])
    wrapped = getattr(home, wrapper.__name__)(env, random_policy())
    wrapped.reset(seed=0)
    for action in (np.zeros(5), "left", [[0.0]], None, [None, None], [["a", "b"]] * 2, [[1], 2]):
        with pytest.raises(SpaceError, match="(?i)action|rank"):
            wrapped.step(action)


GIVEN = np.array([[0.75, -1.5], [0.25, 0.5]], dtype=np.float32)
FORMS = {
    "reversed": lambda a: np.flip(np.flip(a).copy()),
    "big-endian": lambda a: a.astype(">f4"),
    "read-only": lambda a: np.frombuffer(a.tobytes(), np.float32).reshape(a.shape),
    "list": lambda a: a.tolist(),
    "list of arrays": list,
    "float16": lambda a: a.astype(np.float16),
    "tensor": torch.from_numpy,
}


@pytest.mark.parametrize("home", [wrappers, vector])
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("SupportMonitor", {}),
        ("SupportShield", {"percentile": 0}),
        ("SupportShield", {"percentile": 100}),  # replaces everything
        ("MatchSpaces", {}),
    ],
)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_accepted_forms_of_an_action(home, name, own, form):
    def results(actions):
        inner = [Pond(), Pond()]
        env = inner[0] if home is wrappers else SyncVectorEnv([lambda e=e: e for e in inner])
        env = getattr(home, name)(env, random_policy(), **own)
        env.reset(seed=0)
        out = env.step(actions)
        return plain(out), plain([np.array(e.received, np.float32) for e in inner])

    given = GIVEN[0] if home is wrappers else GIVEN
    assert results(form(given.copy())) == results(given.copy())


@pytest.mark.parametrize(
    "form",
    [
        *FORMS.values(),
        lambda a: a,
        lambda a: torch.from_numpy(a).requires_grad_(),
        lambda a: torch.from_numpy(a).bfloat16(),
    ],
)
def test_actions_are_read_as_new_arrays(form):
    given = GIVEN.copy()
    read = read_numbers(form(given), np.float32, (2, 2))
    given[:] = 0
    assert plain(read) == plain(GIVEN)


@pytest.mark.parametrize("home", [wrappers, vector])
@pytest.mark.parametrize("name", ["SupportMonitor", "SupportShield"])
def test_an_action_beyond_single_precision_is_judged(home, name):
    class Careful(Pond):
        def step(self, action):
            return super().step(np.clip(action, -1, 1))

    env = Careful() if home is wrappers else SyncVectorEnv([Careful])
    env = getattr(home, name)(env, random_policy())
    env.reset(seed=0)
    action = np.array([1e300, 0.0])
    gem = env.step(action if home is wrappers else action[None])[-1]["gem"]
    assert np.isnan(gem.get("shield", gem)["percentile"])


class Diverging(Pond):
    """Ends in what only an ignored action can answer to."""

    def _observation(self):
        return np.full(3, np.inf) if self.steps == self.length else super()._observation()


@pytest.mark.parametrize("wrapper", GUARDS)
@pytest.mark.parametrize("kind", [Pond, Diverging])
@pytest.mark.parametrize("length", [1, 3])
def test_an_environment_that_resets_itself_is_a_row_of_its_twin(wrapper, kind, length):
    """An agent that never calls reset: in the step that is a reset, its action means nothing."""
    policy, own = random_policy(), OTHER_ARGUMENTS.get(wrapper.__name__, {})
    single = wrapper(Autoreset(kind(length)), policy, **own)
    twin = getattr(vector, wrapper.__name__)(SyncVectorEnv([lambda: kind(length)]), policy, **own)
    expected, got = twin.reset(seed=0), single.reset(seed=0)
    single.action_space.seed(0)
    for _ in range(3 * length):
        assert plain(got[0]) == plain(expected[0][0])
        compare(got[-1]["gem"], expected[-1]["gem"])
        action = single.action_space.sample()
        got, expected = single.step(action), twin.step(np.asarray(action)[None])
        assert plain(got[1:4]) == plain([entry.tolist()[0] for entry in expected[1:4]])


def compare(single, rows):
    """A record is the first row of another."""
    assert set(single) == set(rows)
    for key, value in single.items():
        if isinstance(value, dict):
            compare(value, rows[key])
        else:
            np.testing.assert_equal(value, rows[key][0])


NUMBERS = {
    "CandidateChoice": ({"candidates": np.int64(3)}, {"candidates": 3}),
    "SupportShield": ({"percentile": np.float32(12.5)}, {"percentile": 12.5}),
    "SupportMonitor": ({"selection": {"kappa": np.float32(2)}}, {"selection": {"kappa": 2.0}}),
    "MatchSpaces": ({"selection": {"candidates": np.int8(2)}}, {"selection": {"candidates": 2}}),
    "SuccessInfo": ({"ever": np.bool_(False)}, {"ever": False}),
}


@pytest.mark.parametrize("wrapper", SINGLES)
def test_numbers_of_numpy_are_recorded_as_plain_ones(wrapper, tmp_path):
    given, meant = NUMBERS[wrapper.__name__]
    path = {} if wrapper is wrappers.SuccessInfo else {"policy": write_policy(tmp_path)}
    wrapped = wrapper(gym.make("GemPond-v0"), **path, **given)
    expected = wrapper(gym.make("GemPond-v0"), **path, **meant)
    assert plain(wrapped._saved_kwargs) == plain(expected._saved_kwargs)
    assert wrapped.spec.to_json() == expected.spec.to_json()
    assert type(gym.make(EnvSpec.from_json(wrapped.spec.to_json()))) is wrapper


@pytest.mark.parametrize("home", [wrappers, vector])
def test_numbers_of_numpy_mean_what_they_say(home):
    def wrapped(name, *policy):
        env = Pond() if home is wrappers else SyncVectorEnv([Pond])
        return getattr(home, name)(env, *policy, **NUMBERS[name][0])

    choice = wrapped("CandidateChoice", random_policy())
    assert plain(choice.candidates) == plain(3)
    space = choice.action_space if home is wrappers else choice.single_action_space
    assert space == gym.spaces.Discrete(3)
    assert plain(wrapped("SupportShield", random_policy()).shield.percentile) == plain(12.5)
    success = wrapped("SuccessInfo")
    success.reset(seed=0)
    still = np.zeros(2) if home is wrappers else np.zeros((1, 2))
    said = [success.step(still)[-1]["is_success"] for _ in range(3)]
    assert [bool(s) for s in said] == [False, True, False]


@pytest.mark.parametrize("home", [wrappers, vector])
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("CandidateChoice", {"candidates": np.int64(0)}),
        ("SupportShield", {"percentile": np.float32(101)}),
    ],
)
def test_numbers_of_numpy_are_checked(home, name, own):
    env = Pond() if home is wrappers else SyncVectorEnv([Pond])
    with pytest.raises(ConfigError, match=next(iter(own))):
        getattr(home, name)(env, random_policy(), **own)


SINGLE_PRECISION = Box(-np.inf, np.inf, (3,), np.float32)


@pytest.mark.parametrize("home", [wrappers, vector])
@pytest.mark.parametrize("wrapper", [*GUARDS, wrappers.MatchSpaces])
def test_observations_that_are_normalized_already_are_told(home, wrapper):
    policy = random_policy(SINGLE_PRECISION)
    env = NormalizeObservation(Pond()) if home is wrappers else SyncVectorEnv([Pond, Pond])
    if home is vector:
        env = gym.wrappers.vector.NormalizeObservation(env)
    with pytest.warns(GEMWarning, match="normalized twice. Leave NormalizeObservation out"):
        getattr(home, wrapper.__name__)(env, policy)


def test_normalizing_is_found_deep_inside():
    def make():
        return FlattenObservation(NormalizeObservation(FlattenObservation(GoalPond())))

    outside = gym.wrappers.vector
    flat = outside.FlattenObservation(SyncVectorEnv([GoalPond]))
    for home, env in (
        (wrappers, make()),
        (vector, SyncVectorEnv([make])),
        (vector, outside.FlattenObservation(SyncVectorEnv([make]))),
        (vector, outside.FlattenObservation(outside.NormalizeObservation(flat))),
    ):
        with pytest.warns(GEMWarning, match="normalized twice"):
            home.MatchSpaces(env, random_policy(GOALS))


def test_observation_written_in_place_is_still_judged_right():
    class Reusing(Pond):
        def _observation(self):
            self.buffer = getattr(self, "buffer", np.empty(3))
            self.buffer[:] = self.state
            return self.buffer

    policy, actions = random_policy(), [np.full(2, 0.3, np.float32)] * 4
    expected = roll(wrappers.SupportMonitor(Pond(), policy), actions)
    got = roll(wrappers.SupportMonitor(Reusing(), policy), actions)
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_equal(one[-1]["gem"], other[-1]["gem"])


@pytest.mark.parametrize("name", wrappers.__all__)
def test_twins_say_how_they_reset(name):
    env = gym.vector.SyncVectorEnv([Pond, Pond])
    env.metadata = {}
    twin = getattr(vector, name)
    assert twin.__name__ == name
    with pytest.raises(SpaceError, match="autoreset_mode"):
        twin(env) if name == "SuccessInfo" else twin(env, random_policy())
