"""SupportShield: it stops what it should, as often as it promises, and says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import Autoreset, TimeLimit
from hypothesis import given
from hypothesis import strategies as st
from wrappers_fakes import Pond, random_policy, roll

from gem_policy import SelectionConfig, wrappers
from gem_policy.errors import ConfigError, GEMError, SpaceError, SupportError
from gem_policy.wrappers import vector

CENTER = np.zeros(2, dtype=np.float32)
FAR = np.array([-1.0, 2.0], dtype=np.float32)  # a corner, for the policy with seed 0


def shielded(mode="replace", percentile=50.0, **kwargs):
    inner = Pond(**kwargs)
    policy = random_policy(selection=SelectionConfig(candidates=16))
    return wrappers.SupportShield(inner, policy, percentile, mode), inner, policy


def percentiles(policy, observation, actions):
    rows = torch.from_numpy(np.asarray(observation, dtype=np.float32))
    assessed = policy.assess(rows, torch.as_tensor(np.asarray(actions))[None])
    return assessed.percentile[0].item()


@pytest.mark.parametrize("mode", ["replace", "nearest", "refuse"])
def test_supported_action_passes_as_it_is(mode):
    env, inner, policy = shielded(mode)
    observation, _ = env.reset(seed=0)
    action, _ = policy.predict(observation, deterministic=True)
    assert percentiles(policy, observation, action) >= 50
    shield = env.step(action)[-1]["gem"]["shield"]
    assert inner.received[0] is action
    assert (shield["intervened"], shield["reason"], shield["replacement"]) == (False, "", "")
    assert shield["distance"] == 0
    assert env.shield.interventions == 0


@pytest.mark.parametrize("bad", [FAR, np.array([np.nan, 0.0]), np.array([0.0, -np.inf])])
def test_replace_does_what_the_policy_would(bad):
    env, inner, policy = shielded()
    observation, _ = env.reset(seed=0)
    expected, _ = policy.predict(observation, deterministic=True)
    shield = env.step(bad)[-1]["gem"]["shield"]
    np.testing.assert_array_equal(inner.received[0], expected)
    np.testing.assert_array_equal(shield["executed"], expected)
    np.testing.assert_array_equal(shield["requested"], bad.astype(np.float32))
    assert shield["intervened"] is True
    assert shield["reason"] == ("unsupported" if np.isfinite(bad).all() else "not finite")
    assert shield["replacement"] == "choice"
    if np.isfinite(bad).all():
        gap = (bad - expected) / np.array([1.0, 2.0])
        assert shield["distance"] == pytest.approx(np.linalg.norm(gap), rel=1e-5)
        assert shield["percentile"] == percentiles(policy, observation, bad.astype(np.float32)) < 50
    else:
        assert np.isnan(shield["percentile"])


def test_nearest_is_the_nearest_supported_candidate():
    env, inner, policy = shielded("nearest")
    observation, _ = env.reset(seed=0)
    shield = env.step(FAR)[-1]["gem"]["shield"]
    rows = policy.explain(observation).rows
    passing = [np.array(row.action) for row in rows if row.support_percentile >= 50]
    gaps = [np.linalg.norm((FAR - action) / np.array([1.0, 2.0])) for action in passing]
    assert 1 < len(passing) < 16
    np.testing.assert_allclose(inner.received[0], passing[int(np.argmin(gaps))], rtol=1e-5)
    assert shield["replacement"] == "nearest"
    assert shield["distance"] == pytest.approx(min(gaps), rel=1e-5)


def test_nearest_without_any_supported_candidate_is_the_choice():
    env, inner, policy = shielded("nearest", 100.0)
    observation, _ = env.reset(seed=0)
    shield = env.step(FAR)[-1]["gem"]["shield"]
    expected, _ = policy.predict(observation, deterministic=True)
    np.testing.assert_array_equal(inner.received[0], expected)
    assert shield["replacement"] == "choice"


def test_refuse_raises_and_does_not_step():
    env, inner, _ = shielded("refuse")
    env.reset(seed=0)
    with pytest.raises(SupportError, match=r"percentile=50.*the policy would take.*not stepped"):
        env.step(FAR)
    assert inner.received == []
    assert (env.shield.steps, env.shield.interventions) == (1, 1)
    assert issubclass(SupportError, GEMError)


def test_counts_are_of_the_episode_and_of_all():
    env, _, _ = shielded(length=3)
    results = [out[-1]["gem"]["shield"] for out in roll(env, [FAR] * 4)]
    assert [(s["steps"], s["interventions"]) for s in results] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
        (0, 0),
        (1, 1),
    ]
    assert (env.shield.steps, env.shield.interventions) == (4, 4)


@pytest.mark.parametrize("percentile", [0, 0.0])
def test_threshold_of_zero_lets_everything_finite_pass(percentile):
    env, inner, _ = shielded(percentile=percentile)
    env.reset(seed=0)
    assert env.step(FAR)[-1]["gem"]["shield"]["intervened"] is False
    assert env.step(np.full(2, np.nan))[-1]["gem"]["shield"]["intervened"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"percentile": -1}, "percentile"),
        ({"percentile": 100.1}, "percentile"),
        ({"percentile": float("nan")}, "percentile"),
        ({"mode": "drop"}, "replace"),
    ],
)
def test_settings_are_checked(arguments, message):
    with pytest.raises(ConfigError, match=message):
        wrappers.SupportShield(Pond(), random_policy(), **arguments)


def test_observation_that_is_not_finite_stops_the_shield():
    class Broken(Pond):
        def _observation(self):
            return np.full(3, np.nan)

    env = wrappers.SupportShield(Broken(), random_policy())
    env.reset(seed=0)
    with pytest.raises(SpaceError, match="NaN or infinite"):
        env.step(CENTER)


@given(percentile=st.floats(0.5, 60), seed=st.integers(0, 5))
def test_data_is_stopped_as_often_as_promised(percentile, seed):
    """Fresh draws of the calibrated distribution; 5 standard errors, and a step of 0.1 %.

    Per example the test fails by chance in fewer than 1 of a million cases.
    """
    policy = random_policy(seed=seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    rows = torch.randn(4000, 3, generator=generator)
    with torch.no_grad():
        actions = policy.behavior(rows).sample(1, generator).squeeze(-2).clamp(-1, 1)
    found = policy.assess(rows, policy.scaler.invert(actions).unsqueeze(-2)).percentile[:, 0]
    rate = (found < percentile).double().mean().item() * 100
    # Both the calibration and the rate come from 4000 draws.
    error = 100 * np.sqrt(2 * percentile / 100 * (1 - percentile / 100) / 4000)
    assert abs(rate - percentile) <= 5 * error + 0.1


def test_thresholds_on_the_grid_are_exact():
    """Every calibration point but the lowest p percent passes a threshold of p percent."""
    policy = random_policy()
    points = policy.support_percentile(policy.calibration)
    for tenth in range(1001):
        assert int((points < tenth / 10).sum()) == tenth


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("way", ["replace", "nearest"])
def test_twin_does_what_singles_do(mode, way):
    policy = random_policy(selection=SelectionConfig(candidates=8))
    makers = [lambda n=n: Pond(n) for n in (3, 5, 4)]
    wrapped = [lambda m=m: wrappers.SupportShield(m(), policy, 50, way) for m in makers]
    twin = vector.SupportShield(SyncVectorEnv(makers, autoreset_mode=mode), policy, 50, way)
    inside = SyncVectorEnv(wrapped, autoreset_mode=mode)
    twin.reset(seed=3), inside.reset(seed=3)
    inside.action_space.seed(0)
    for _ in range(14):
        actions = inside.action_space.sample()
        given = actions.copy()
        ours, theirs = twin.step(actions), inside.step(actions)
        np.testing.assert_array_equal(actions, given)
        for one, other in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)
        ended = theirs[2] | theirs[3] if mode == AutoresetMode.SAME_STEP else np.zeros(3, bool)
        for key, expected in theirs[-1]["gem"]["shield"].items():
            if not key.startswith("_"):
                got = ours[-1]["gem"]["shield"][key]
                if expected.dtype == object:
                    assert got[~ended].tolist() == expected[~ended].tolist(), key
                else:
                    np.testing.assert_allclose(got[~ended], expected[~ended], 1e-4, 1e-6)
        for i in np.flatnonzero(ended):
            final, got = theirs[-1]["final_info"]["gem"]["shield"], ours[-1]["gem"]["shield"]
            assert got["steps"][i] == final["steps"][i]
            assert got["intervened"][i] == final["intervened"][i]
    counted = sum(env.shield.steps for env in inside.envs)
    assert twin.shield.steps == counted
    assert twin.shield.interventions == sum(env.shield.interventions for env in inside.envs) > 0


def test_twin_refuses_before_any_step_and_names_the_environment():
    inner = [Pond(), Pond()]
    envs = SyncVectorEnv([lambda e=e: e for e in inner])
    twin = vector.SupportShield(envs, random_policy(), 50, "refuse")
    observations, _ = twin.reset(seed=0)
    good, _ = twin.policy.predict(observations, deterministic=True)
    with pytest.raises(SupportError, match="environment 1: "):
        twin.step(np.stack([good[0], FAR]))
    assert inner[0].received == []


def test_twin_lets_ignored_actions_be_anything():
    class Diverging(Pond):
        def _observation(self):
            return np.full(3, np.inf) if self.steps == self.length else super()._observation()

    envs = SyncVectorEnv([lambda: Diverging(2), lambda: Pond(9)])
    twin = vector.SupportShield(envs, random_policy(), 50, "refuse")
    observations, _ = twin.reset(seed=0)
    for _ in range(2):
        good, _ = twin.policy.predict(observations, deterministic=True)
        observations, *_ = twin.step(good)
    good, _ = twin.policy.predict(observations[1], deterministic=True)
    *_, infos = twin.step(np.stack([np.full(2, np.nan, np.float32), good]))
    assert infos["_gem"].tolist() == [False, True]
    assert infos["gem"]["shield"]["steps"].tolist() == [0, 3]


def test_monitor_outside_sees_the_request_and_inside_the_deed():
    env, _, policy = shielded()
    both = wrappers.SupportMonitor(env, policy)
    both.reset(seed=0)
    outside = both.step(FAR)[-1]["gem"]
    assert outside["percentile"] == pytest.approx(outside["shield"]["percentile"])
    assert outside["choice"]["distance"] > 0
    inside = wrappers.SupportShield(wrappers.SupportMonitor(Pond(), policy), policy, 50)
    inside.reset(seed=0)
    gem = inside.step(FAR)[-1]["gem"]
    assert gem["choice"]["distance"] == 0
    assert gem["shield"]["intervened"]


def test_counts_begin_anew_where_nobody_resets():
    env, inner, _ = shielded(length=2)
    env = wrappers.SupportShield(Autoreset(inner), env.policy, 50)
    env.reset(seed=0)
    told = [env.step(FAR)[-1]["gem"]["shield"] for _ in range(7)]
    assert [s["steps"] for s in told] == [1, 2, 0, 1, 2, 0, 1]
    assert [s["interventions"] for s in told] == [1, 2, 0, 1, 2, 0, 1]
    assert [s["intervened"] for s in told] == [bool(s["steps"]) for s in told]
    assert (env.shield.steps, env.shield.interventions) == (5, 5)


def test_nothing_passes_after_the_end_of_an_episode():
    """Only `Autoreset` is known to ignore that action; a time limit's environment goes on."""
    bare, far = Pond(length=99), np.copy(FAR)
    for env in (bare, Autoreset(bare)):
        env = wrappers.SupportShield(TimeLimit(env, 2), random_policy(), 50)
        env.reset(seed=0)
        told = [env.step(far)[-1]["gem"]["shield"] for _ in range(4)]
        assert [s["steps"] for s in told] == [1, 2, 1, 1]  # every step is the last one of all
        assert all(s["intervened"] for s in told)
    assert not any(np.array_equal(action, far) for action in bare.received)


def test_what_is_refused_in_a_new_episode_counts_in_it():
    env, inner, policy = shielded("refuse", length=1)
    observation, _ = env.reset(seed=0)
    env.step(policy.predict(observation, deterministic=True)[0])
    for _ in range(2):
        with pytest.raises(SupportError):
            env.step(FAR)
    observation = inner._observation()
    good, _ = policy.predict(observation, deterministic=True)
    shield = env.step(good)[-1]["gem"]["shield"]
    assert (shield["steps"], shield["interventions"]) == (3, 2)
