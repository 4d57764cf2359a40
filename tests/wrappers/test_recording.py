"""Deployed rollouts, recorded with `info["gem"]`, read back, and ready to be trained on."""

from __future__ import annotations

import gc
import importlib
import json

import gymnasium as gym
import numpy as np
import pytest
from layout import ROOT
from wrappers_fakes import GOALS, Pond, random_policy, roll, write_policy

from gem_policy import GEMPolicy, wrappers

minari = pytest.importorskip("minari")


def check(dataset_id, results, policy):
    """The dataset holds the rollout, and what the wrappers said about it."""
    from gem_policy.training.dataset import load

    data = load(dataset_id)
    steps = [out for out in results if len(out) == 5]
    assert len(data.transitions) == len(steps)
    rewards = np.array([out[1] for out in steps], np.float32)
    np.testing.assert_array_equal(data.transitions.rewards, rewards)
    assert data.observation_space == policy.observation_space

    infos = [out[-1]["gem"] for out in results]
    episodes = list(minari.load_dataset(dataset_id).iterate_episodes())
    for key in ("log_beta", "percentile", "component"):
        stored = np.concatenate([episode.infos["gem"][key] for episode in episodes])
        np.testing.assert_array_equal(stored, [gem[key] for gem in infos])
    choices = np.concatenate([episode.infos["gem"]["choice"]["action"] for episode in episodes])
    np.testing.assert_array_equal(choices, [gem["choice"]["action"] for gem in infos])
    reasons = np.concatenate([episode.infos["gem"]["shield"]["reason"] for episode in episodes])
    texts = [reason.decode() for reason in reasons]
    assert texts == [gem["shield"]["reason"] for gem in infos]
    assert {"unsupported", ""} == set(texts)
    return data


def stack(entries):
    """Dictionaries of one structure as one of lists."""
    if isinstance(entries[0], dict):
        return {key: stack([entry[key] for entry in entries]) for key in entries[0]}
    return list(entries)


def guarded(env, policy):
    return wrappers.SupportMonitor(wrappers.SupportShield(env, policy, 30.0), policy)


def some_actions(env, count):
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(count)]


def test_buffers_round_trip():
    from small_datasets import write_dataset

    policy = random_policy(GOALS)
    env = guarded(Pond(4, GOALS), policy)
    actions = some_actions(env, 8)
    results = roll(env, actions)[:-1]  # without the reset after the last episode
    starts = [i for i, out in enumerate(results) if len(out) == 2] + [len(results)]
    episodes = []
    for begin, end in zip(starts[:-1], starts[1:], strict=True):
        rows = results[begin:end]
        episodes.append(
            {
                "observations": stack([row[0] for row in rows]),
                # What was done, not what was asked for.
                "actions": [row[-1]["gem"]["shield"]["executed"] for row in rows[1:]],
                "rewards": [row[1] for row in rows[1:]],
                "terminations": [row[2] for row in rows[1:]],
                "truncations": [row[3] for row in rows[1:]],
                "infos": stack([row[-1] for row in rows]),
            }
        )
    write_dataset(
        "test/recorded-v0",
        episodes,
        observation_space=env.observation_space,
        action_space=env.action_space,
    )
    data = check("test/recorded-v0", results, policy)
    executed = [out[-1]["gem"]["shield"]["executed"] for out in results if len(out) == 5]
    np.testing.assert_array_equal(data.transitions.actions, np.stack(executed))


COLLECTOR_WARNINGS = pytest.mark.filterwarnings(
    # Minari's collector leaves its temporary folders to the garbage collector.
    "ignore:Implicitly cleaning up:ResourceWarning",
    "ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning",
)


@pytest.mark.slow
@COLLECTOR_WARNINGS
# Twenty updates use no component much, and are told so.
@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")
def test_the_example_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("jax")
    spec = json.loads(gym.make("GemGoalPond-v0", length=20).spec.to_json())
    path = write_policy(tmp_path, GOALS, provenance={"eval_env_spec": spec})
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = importlib.import_module("record_and_train")
    arguments = ["--episodes", "10", "--updates", "20", "--out", str(tmp_path / "run")]
    made = example.main([str(path), *arguments])
    assert "200 actions recorded" in capsys.readouterr().out
    policy = GEMPolicy.load(made)
    assert policy.observation_space == GOALS
    assert policy.provenance["dataset_id"] == "recorded/deployed-v0"
    gc.collect()


@COLLECTOR_WARNINGS
def test_collector_round_trip(tmp_path):
    pytest.importorskip("jax")  # Minari's collector needs it for every step
    path = write_policy(tmp_path, GOALS)
    env = gym.make("GemGoalPond-v0", length=4)
    env = guarded(env, path)
    collector = minari.DataCollector(env, record_infos=True)
    results = roll(collector, some_actions(env, 8))[:-1]
    collector.create_dataset("test/collected-v0", num_episodes_average_score=1)
    check("test/collected-v0", results, env.policy)
    recovered = minari.load_dataset("test/collected-v0").recover_environment()
    assert str(recovered) == str(env)  # the wrappers, too
    collector.close()
    del collector
    gc.collect()
