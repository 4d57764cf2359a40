"""What every wrapper keeps: Gymnasium's and SB3's checks, specs, references, reset before step."""

from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from gymnasium.utils.env_checker import check_env
from wrappers_fakes import ACTIONS, Pond, random_policy, roll, write_policy

from gem_policy import GEMPolicy, wrappers
from gem_policy.errors import CheckpointError, ConfigError, GEMError, SpaceError
from gem_policy.wrappers import vector

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
@pytest.mark.parametrize("wrapper", GUARDS)
def test_wrong_action_says_its_shape(home, wrapper):
    env = Pond() if home is wrappers else gym.vector.SyncVectorEnv([Pond, Pond])
    wrapped = getattr(home, wrapper.__name__)(env, random_policy())
    wrapped.reset(seed=0)
    for action in (np.zeros(5), "left", [[0.0]], None):
        with pytest.raises(SpaceError):
            wrapped.step(action)


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
