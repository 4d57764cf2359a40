"""Evaluation where every return, success and length is known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from fakes import BOX, GOAL, ScriptedEnv, tiny_policy
from hypothesis import given, settings
from hypothesis import strategies as st

from gem_policy.errors import ConfigError, SpaceError
from gem_policy.evaluate import (
    EpisodeRecords,
    Interval,
    ReportRow,
    machine,
    rollout,
    time_decisions,
)
from gem_policy.policy import GEMPolicy
from gem_policy.report import players, report_document


def maker(**kwargs: Any) -> Callable[[], gym.Env[Any, Any]]:
    return lambda: ScriptedEnv(**kwargs)


def play(make: Callable[[], gym.Env[Any, Any]], space: Any = BOX, **kwargs: Any) -> EpisodeRecords:
    options: dict[str, Any] = {"episodes": 4, "envs": 2, "seed": 0, **kwargs}
    return rollout(tiny_policy(space), make, **options)


@pytest.mark.parametrize("space", [BOX, GOAL], ids=["box", "goal"])
@pytest.mark.parametrize("terminates", [False, True])
def test_returns_and_lengths_are_the_scripts(space: Any, terminates: bool) -> None:
    rewards = [1.0, -0.5, 2.0]
    records = play(maker(observation_space=space, rewards=rewards, terminates=terminates), space)
    assert records.returns == [2.5] * 4
    assert records.lengths == [3] * 4
    assert records.successes == [False] * 4
    assert records.steps_to_success == [3] * 4
    assert records.decision_us_p99 >= records.decision_us > 0


def test_the_step_of_the_first_success_is_noted_even_if_it_passes() -> None:
    records = play(maker(rewards=[0.0] * 6, success_at=2))
    assert records.successes == [True] * 4
    assert records.steps_to_success == [2] * 4
    assert records.lengths == [6] * 4


def test_environments_that_never_speak_of_success_have_none() -> None:
    records = play(maker(reports_success=False))
    assert records.successes == [] and records.steps_to_success == []
    assert set(ReportRow("x", {}, records).summary()) == {
        *("return", "length", "decision_us", "decision_us_p99")
    }


def test_every_environment_starts_from_a_seed_of_its_own() -> None:
    made: list[ScriptedEnv] = []

    def make() -> ScriptedEnv:
        made.append(ScriptedEnv(rewards=[0.0], reward_of_seed=True))
        return made[-1]

    records = play(make, episodes=6, envs=3, seed=40)
    assert [env.seeds[0] for env in made] == [40, 41, 42]
    assert sorted(records.returns) == [40, 41, 42, 43, 44, 45]


def test_an_environment_need_not_know_of_options() -> None:
    class Plain(ScriptedEnv):
        def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
            return super().reset(seed=seed)

    assert len(play(Plain, episodes=3, envs=2).returns) == 3


def test_starts_do_not_depend_on_the_episode_before() -> None:
    """Nor on how many random numbers its steps drew, which depends on who acts."""

    class Windy(ScriptedEnv):
        def step(self, action: Any) -> Any:
            self.np_random.random(1 + int(10 * abs(float(action[0]))))
            return super().step(action)

    starts = []
    for seed in (0, 1):
        seen: list[Any] = []

        class Seen(Windy):
            def reset(self, places: list[Any] = seen, **kwargs: Any) -> Any:
                found = super().reset(**kwargs)
                places.append(found[0])
                return found

        rollout(tiny_policy(seed=seed), Seen, episodes=6, envs=2, seed=40)
        starts.append(np.unique(seen, axis=0))
    np.testing.assert_array_equal(*starts)
    assert len(starts[0]) >= 6


def test_episodes_are_told_in_the_order_of_their_starts() -> None:
    """Not in that of their ends: the short ones would come first, whoever acts."""
    lengths = iter((5, 2, 3, 1))
    made = lambda: ScriptedEnv(rewards=[1.0] * next(lengths), success_at=1)  # noqa: E731
    records = play(made, episodes=10, envs=4, seed=40)
    assert records.lengths == [5, 2, 3, 1, 5, 2, 3, 1, 3, 1]
    assert records.returns == records.lengths
    assert records.steps_to_success == [min(n, 1) for n in records.lengths]


def test_no_more_environments_are_made_than_there_are_episodes() -> None:
    count = 0

    def make() -> ScriptedEnv:
        nonlocal count
        count += 1
        return ScriptedEnv()

    assert len(play(make, episodes=3, envs=50).returns) == 3
    assert count == 3


def test_whoever_plays_meets_the_same_starts() -> None:
    seen: list[list[Any]] = []

    class Watched(ScriptedEnv):
        def reset(self, **kwargs: Any) -> Any:
            observation, info = super().reset(**kwargs)
            seen[-1].append(observation.tolist())
            return observation, info

    for policy in (tiny_policy(), tiny_policy(seed=5)):
        seen.append([])
        rollout(policy, Watched, episodes=4, envs=2, seed=7)
    assert seen[0] == seen[1] and len(seen[0]) >= 4


@pytest.mark.parametrize("batched", [False, True])
def test_batched_evaluation_decides_for_all_environments_at_once(batched: bool) -> None:
    sizes: set[int] = set()

    class Counted(GEMPolicy):
        def act(self, rows: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
            sizes.add(len(rows))
            return super().act(rows, generator)

    policy = Counted(tiny_policy().to_checkpoint(), torch.device("cpu"))
    rollout(policy, ScriptedEnv, episodes=6, envs=3, seed=0, batched=batched)
    assert sizes == ({1, 3} if batched else {1})  # 1: decisions are timed one by one
    assert policy.row_by_row


def test_nested_observations_are_refused_in_words() -> None:
    space = gym.spaces.Dict({"a": gym.spaces.Dict({"b": BOX})})
    with pytest.raises(SpaceError, match="Stable-Baselines3 cannot play.*a loop of your own"):
        play(maker(observation_space=space), space)


def test_progress_counts_finished_episodes() -> None:
    calls = []
    play(maker(), episodes=5, progress=lambda: calls.append(1))
    assert len(calls) == 5


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"envs": 0}, {"episodes": -3}, {"seed": -1}])
def test_counts_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"`{next(iter(wrong))}` must be an integer >= "):
        play(maker(), **wrong)


def test_decisions_are_timed_one_by_one() -> None:
    batch = {key: np.zeros((2, *box.shape)) for key, box in GOAL.spaces.items()}
    times = time_decisions(tiny_policy(GOAL), batch, repeats=7)
    assert times.shape == (7,) and (times > 0).all()


# -- intervals -----------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
@settings(max_examples=20)
def test_an_interval_lies_around_its_mean_and_within_the_sample(sample: list[float]) -> None:
    found = Interval.of(sample)
    assert found.mean == pytest.approx(np.mean(sample))
    slack = 1e-9 * (1 + max(map(abs, sample)))
    assert min(sample) - slack <= found.low <= found.mean + slack
    assert found.mean - slack <= found.high <= max(sample) + slack
    assert Interval.of(sample) == found


@pytest.mark.parametrize("sample", [[3.0], [2.0, 2.0, 2.0]])
def test_a_sample_without_spread_gives_a_point(sample: list[float]) -> None:
    assert Interval.of(sample) == Interval(sample[0], sample[0], sample[0])


def test_the_interval_of_many_normal_numbers_is_the_textbooks() -> None:
    sample = np.random.default_rng(0).normal(5, 2, 400)
    found = Interval.of(sample.tolist())
    half = 1.96 * sample.std() / 20
    assert found.low == pytest.approx(sample.mean() - half, abs=0.03)
    assert found.high == pytest.approx(sample.mean() + half, abs=0.03)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """300 intervals of 30 exponentials: at 92 % true coverage (small samples cost a little), fewer
    than 85 % has a probability below 1e-5."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        found = Interval.of(rng.exponential(1.0, 30).tolist())
        hits += found.low <= 1.0 <= found.high
    assert 0.85 * 300 < hits < 300


# -- reports -------------------------------------------------------------------------------------


def test_a_plan_has_the_baselines_and_every_combination() -> None:
    policy = tiny_policy()
    plan = players(
        policy,
        candidates=[1, 16],
        support_weights=[0.0, 1.0],
        kappas=None,
        baselines=True,
        compare={"other": tiny_policy(seed=1)},
    )
    assert [row.label for row in plan] == [
        "cloning (behavior sample)",
        "behavior mode",
        "actor mode",
        "actor sample",
        "other",
        *("GEM N=1 lambda=0", "GEM N=16 lambda=0", "GEM N=1 lambda=1", "GEM N=16 lambda=1"),
    ]
    assert [row.deterministic for row in plan[:5]] == [False, True, True, False, True]
    for row in plan[5:]:
        entered = row.enter()
        assert entered is policy
        assert policy.selection.candidates == row.settings["candidates"]
        assert policy.selection.support_weight == row.settings["support_weight"]


def test_a_plan_without_lists_plays_the_policys_own_settings() -> None:
    policy = tiny_policy()
    nothing: dict[str, Any] = {"candidates": None, "support_weights": None, "kappas": None}
    (row,) = players(policy, **nothing, baselines=False, compare={})
    assert row.label == "GEM N=12 lambda=1"
    (row,) = players(policy, **{**nothing, "kappas": [2.0]}, baselines=False, compare={})
    assert row.label == "GEM N=12 lambda=1 kappa=2"
    assert row.settings["kappa"] == 2.0


def test_the_document_keeps_every_episode_and_names_no_host() -> None:
    import json
    import socket

    records = play(maker(rewards=[1.0, 1.0], success_at=1))
    row = ReportRow("me", {"candidates": 3}, records)
    document = report_document(tiny_policy(), [row], episodes=4, seed=9, envs=2)
    (kept,) = document["rows"]
    assert kept["episodes"] == {
        "return": [2.0] * 4,
        "success": [True] * 4,
        "steps_to_success": [1] * 4,
    }
    assert kept["summary"]["success"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert kept["settings"] == {"candidates": 3}
    assert document["batched"] is False
    assert document["seed"] == 9 and document["dataset_id"] == "test/tiny-v0"
    assert document["train"] is None, "the fake was not trained"
    assert socket.gethostname() not in json.dumps(document)
    assert {"cores", "torch_threads", "torch", "gem-policy"} <= set(machine())
