"""What `gem-policy train` can do besides: play while training, Weights & Biases, three lines."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from rich.console import Console
from rich.progress import Progress as RichProgress
from small_datasets import random_episode, write_dataset
from tiny_runs import SHORT, TINY, Stop, run

import gem_policy.training
from gem_policy import checkpoint
from gem_policy.checkpoint import Checkpoint
from gem_policy.config import NetworkConfig, SelectionConfig
from gem_policy.errors import (
    CheckpointError,
    ConfigError,
    DependencyError,
    SpaceError,
    TrainingError,
)
from gem_policy.policy import GEMPolicy
from gem_policy.training import run as command
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.few_demonstrations import WIDE
from gem_policy.training.preparation import prepare
from gem_policy.training.run import (
    Settings,
    curves,
    gather_settings,
    player,
    settle,
    wandb_curves,
)
from gem_policy.training.trainer import Progress

CPU = torch.device("cpu")
ENV = "InvertedPendulum-v5"
pytestmark = pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))


@pytest.fixture
def dataset() -> Dataset:
    env = gym.make(ENV, max_episode_steps=6)
    rng = np.random.default_rng(0)
    assert isinstance(env.action_space, gym.spaces.Box)
    episodes = [random_episode(6, rng, env.observation_space, env.action_space) for _ in range(5)]
    write_dataset(
        "test/pole-v0",
        episodes,
        observation_space=env.observation_space,
        action_space=env.action_space,
        env=env,
    )
    env.close()
    return gem_policy.training.load("test/pole-v0")


# -- evaluation while training ---------------------------------------------------------------------


def test_it_is_played_at_those_updates_and_at_the_end_and_nothing_changes(
    dataset: Dataset, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    play = player(dataset, SHORT, 3, CPU)
    calls: list[Checkpoint] = []

    def watched(now: Checkpoint) -> Any:
        torch.manual_seed(len(calls))
        np.random.seed(len(calls))
        calls.append(Checkpoint(now.config, {k: v.clone() for k, v in now.tensors.items()}))
        return play(now)

    options: dict[str, Any] = {"evaluate": watched, "evaluate_every": 8}
    out = tmp_path / "played"
    with_it = run(dataset, out, log_every=6, progress=seen.append, **options)
    assert with_it == run(dataset, tmp_path / "plain", log_every=6)
    readings = {p.step: p.metrics for p in seen if "evaluation/return" in p.metrics}
    assert list(readings) == [8, 12] and len(calls) == 2
    assert all(p.phase == "actor" for p in seen if "evaluation/return" in p.metrics)
    assert all(1 <= r["evaluation/length"] <= 6 for r in readings.values())
    # What was played last is what was written.
    final = checkpoint.load(out)
    for name, tensor in final.tensors.items():
        assert torch.equal(tensor, calls[1].tensors[name]), name
    assert not torch.equal(calls[0].tensors["actor.weights.0"], calls[1].tensors["actor.weights.0"])
    again = play(final)
    assert again["return"] == readings[12]["evaluation/return"]
    assert "success" not in again  # the pole tells of none


def test_a_dataset_without_environment_is_refused_before_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_dataset("test/nowhere-v0", [random_episode(6, rng) for _ in range(3)])
    data = gem_policy.training.load("test/nowhere-v0")
    with pytest.raises(SpaceError, match="names no environment"):
        player(data, SHORT, 3, CPU)
    with pytest.raises(ConfigError, match="`evaluate_every` must be"):
        gem_policy.training.fit(data, tmp_path / "out", SHORT, evaluate_every=0)
    with pytest.raises(ConfigError, match="`evaluate_episodes` must be"):
        player(data, SHORT, 0, CPU)


def test_an_environment_of_other_spaces_is_refused_before_training(dataset: Dataset) -> None:
    told = replace(dataset, env_spec=gym.spec("Hopper-v5").to_json(), eval_env_spec=None)
    with pytest.raises(SpaceError, match="other spaces than .*Leave out --evaluate-every"):
        player(told, SHORT, 2, torch.device("cpu"))


def test_nested_observations_are_refused_before_training(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = gym.spaces.Dict({"pole": dataset.observation_space})
    env = SimpleNamespace(observation_space=gym.spaces.Dict({"outer": inner}))
    monkeypatch.setattr(command, "make_spec", lambda spec: env)
    with pytest.raises(SpaceError, match="observations are nested"):
        player(dataset, SHORT, 3, CPU)


def test_without_stable_baselines_it_is_refused_before_training(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"gem-policy\[sb3\].*--evaluate-every"):
        player(dataset, SHORT, 3, CPU)


# -- Weights & Biases ------------------------------------------------------------------------------


def now(done: int, **metrics: float) -> Progress:
    return Progress("value", done - 12, 20, done, 56, metrics)


@pytest.mark.parametrize("fails", [False, True])
def test_metrics_go_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    told: dict[str, Any] = {"logged": []}

    def init(**kwargs: Any) -> Any:
        told["init"] = kwargs
        return SimpleNamespace(
            id=kwargs["id"] or "made",
            log=lambda metrics, step: told["logged"].append((step, metrics)),
            finish=lambda exit_code: told.update(exit=exit_code),
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    settings = Settings(train=SHORT, network={"critics": 3})
    out = tmp_path / "runs" / "one"
    try:
        with wandb_curves("gem", out, settings) as write:
            write(now(20, **{"value/loss": 0.5}))
            write(now(25, **{"value/loss": 0.25}))
            if fails:
                raise TrainingError("broken")
    except TrainingError:
        assert fails
    assert told["logged"] == [(20, {"value/loss": 0.5}), (25, {"value/loss": 0.25})]
    assert told["exit"] == int(fails)
    made = told["init"]
    assert (made["project"], made["name"], made["dir"]) == ("gem", "one", str(out))
    assert made["config"]["batch_size"] == 16 and made["config"]["critics"] == 3
    assert made["config"]["kappa"] == SelectionConfig().kappa
    assert "candidates" not in made["config"]
    assert (made["id"], made["resume"]) == (None, "allow")
    with wandb_curves("gem", out, settings):  # the run goes on
        assert (told["init"]["id"], told["init"]["resume"]) == ("made", "allow")
    with wandb_curves("gem", tmp_path / "other", settings):
        assert told["init"]["id"] is None


# -- TensorBoard -----------------------------------------------------------------------------------


def steps_of(folder: Path, name: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return [event.step for event in read.Scalars(name)]


def test_a_resumed_runs_curves_go_on_where_it_does(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stopping(write: Any) -> Any:
        def progress(now: Progress) -> None:
            write(now)
            if now.done == 25:
                raise Stop

        return progress

    with pytest.raises(Stop), curves(out) as write:
        run(dataset, out, save_seconds=1e9, progress=stopping(write))  # the values' are not saved
    assert steps_of(out, "value/loss") == [17, 22]
    for _ in range(2):  # a finished run writes nothing more
        with curves(out) as write:
            run(dataset, out, save_seconds=1e9, progress=write)
        assert steps_of(out, "behavior/log_prob") == [5, 10, 12]
        assert steps_of(out, "value/loss") == [17, 22, 27, 32]
        assert steps_of(out, "actor/log_prob") == [49, 54, 56]


def test_a_folder_of_curves_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    with (
        pytest.raises(CheckpointError, match=r"tensorboard cannot be written.*--no-tensorboard"),
        curves(tmp_path) as write,
    ):
        write(now(20, loss=0.5))


def test_settled_settings_are_those_that_a_run_records(dataset: Dataset, tmp_path: Path) -> None:
    some = {name: value for name, value in TINY.items() if name != "behavior_hidden"}
    given = Settings(train=SHORT, network={**some, "critics": 3})
    settled = settle(given, dataset)
    assert settled == settle(settled, dataset) != given
    a, b = (
        run(dataset, tmp_path / name, one.train, network=one.network)
        for name, one in (("given", given), ("settled", settled))
    )
    assert a == b
    made = checkpoint.load(tmp_path / "given")
    assert made.config.network == NetworkConfig(**settled.network)
    assert made.config.network.behavior_hidden == WIDE["behavior_hidden"]
    assert made.provenance["train"] == json.loads(json.dumps(asdict(settled.train)))


@pytest.mark.parametrize(
    ("file", "seed", "overrides", "expected"),
    [
        ({}, None, [], 0),
        ({"seed": 5}, None, [], 5),
        ({"seed": 5}, 3, [], 3),
        ({"seed": 5}, 0, [], 0),
        ({"seed": 5}, 3, ["seed=4"], 4),
    ],
)
def test_what_is_given_later_decides_the_seed(
    tmp_path: Path, file: dict[str, int], seed: int | None, overrides: list[str], expected: int
) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(file))
    found = gather_settings(tmp_path / "settings.json", overrides, seed)
    assert found.train.seed == expected


def test_a_recipe_that_ships_is_taken_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert gather_settings(Path("pointmaze"), []).train.value_steps == 32
    (tmp_path / "pointmaze").write_text('{"value_steps": 5}')
    assert gather_settings(Path("pointmaze"), []).train.value_steps == 5
    (tmp_path / "pointmaze").unlink()
    (tmp_path / "pointmaze").mkdir()  # of a run, perhaps
    assert gather_settings(Path("pointmaze"), []).train.value_steps == 32
    for absent in ("pointmazy", "../pretrained/pointmaze", "/pointmaze", "{" * 300):
        with pytest.raises(ConfigError, match=r"no JSON file of settings.*\['pointmaze'\]"):
            gather_settings(Path(absent), [])


@pytest.mark.parametrize("text", ["[]", '[["actor_updates", 5]]', "3", "null"])
def test_settings_are_a_json_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ConfigError, match="must hold a JSON object such as"):
        gather_settings(tmp_path / "settings.json", [])


def test_a_kept_checkpoint_stays_what_it_was(dataset: Dataset, tmp_path: Path) -> None:
    kept: list[Checkpoint] = []
    copies: list[dict[str, torch.Tensor]] = []

    def keep(now: Checkpoint) -> dict[str, float]:
        kept.append(now)
        copies.append({name: tensor.clone() for name, tensor in now.tensors.items()})
        return {}

    made = run(dataset, tmp_path / "kept", evaluate=keep, evaluate_every=4)
    assert len(kept) == 3
    for one, copy in zip(kept, copies, strict=True):
        for name, tensor in one.tensors.items():
            assert torch.equal(tensor, copy[name]), name

    def spoil(now: Checkpoint) -> dict[str, float]:
        for tensor in now.tensors.values():
            tensor.zero_()
        return {}

    assert run(dataset, tmp_path / "spoiled", evaluate=spoil, evaluate_every=4) == made


def test_without_wandb_the_advice_is_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with wandb_curves(None, tmp_path / "out", Settings()) as write:
        write(now(20, **{"value/loss": 0.5}))
    with (
        pytest.raises(DependencyError, match="pip install wandb"),
        wandb_curves("gem", tmp_path / "out", Settings()),
    ):
        pass


# -- three lines -----------------------------------------------------------------------------------


def test_without_a_terminal_lines_say_how_long_it_will_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([1000.0, 1010.0, 1120.0, 1240.0])
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    written = io.StringIO()
    bar = RichProgress(console=Console(file=written, width=200))
    report = command._report(bar, [])
    report(Progress("value", 5, 100, 105, 400, {}))  # resumed: 104 were done before
    report(Progress("value", 6, 100, 106, 400, {"value/loss": 1.5}))
    assert written.getvalue() == "", "ten seconds are too soon for a line"
    for step in range(7, 41):
        report(
            Progress("value", step, 100, 100 + step, 400, {"value/loss": 1.5} if step == 40 else {})
        )
    # 36 updates took two minutes, 260 are to come.
    assert written.getvalue().startswith("140/400, about 14 min left; value: loss 1.5")
    # Early stopping: 60 updates are left out, and take no time.
    report(Progress("value", 100, 100, 200, 400, {"value/loss": 1.5}))
    assert "200/400, about 22 min left" in written.getvalue()  # 37 in four minutes


def test_fit_takes_names_and_paths_as_text(dataset: Dataset, tmp_path: Path) -> None:
    from gem_policy.training import fit, load

    whole = run(dataset, tmp_path / "whole")
    options: dict[str, Any] = {"network": TINY}
    made = fit(load("test/pole-v0"), str(tmp_path / "a"), SHORT, **options)
    assert made == tmp_path / "a" / checkpoint.WEIGHTS_FILE
    assert made.read_bytes() == whole
    assert fit("test/pole-v0", str(tmp_path / "b"), SHORT, **options).read_bytes() == whole
    assert isinstance(GEMPolicy.load(tmp_path / "b", device="cpu"), GEMPolicy)


def test_the_training_package_names_what_it_has() -> None:
    assert set(gem_policy.training.__all__) <= set(dir(gem_policy.training))
    for name in gem_policy.training.__all__:
        assert getattr(gem_policy.training, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'learn'"):
        gem_policy.training.learn  # noqa: B018


# -- rewards ---------------------------------------------------------------------------------------


def test_return_normalization_is_the_formula_and_is_told(dataset: Dataset, tmp_path: Path) -> None:
    settings = {"return_normalization": True, "reward_scale": 0.5, "reward_shift": -1.0}
    config = TrainConfig(**{**vars(SHORT), **settings})
    sums = [0.0] * 5
    for reward, episode in zip(
        dataset.transitions.rewards.tolist(), dataset.transitions.episode.tolist(), strict=True
    ):
        sums[episode] += reward
    factor = 0.5 * 1000 / (max(sums) - min(sums))
    prepared, plain = prepare(dataset, config, CPU), prepare(dataset, SHORT, CPU)
    for part, raw in ((prepared.training, plain.training), (prepared.held_out, plain.held_out)):
        unit = prepared.scale.unit
        torch.testing.assert_close(part.rewards, (raw.rewards * factor - 1.0) / unit)
    run(dataset, tmp_path / "out", config)
    told = checkpoint.load(tmp_path / "out").provenance
    expected = {"factor": pytest.approx(factor), "shift": -1.0, "unit": prepared.scale.unit}
    assert told["rewards"] == expected
    assert json.loads(json.dumps(told["train"]))["return_normalization"] is True


def test_equal_returns_cannot_be_normalized() -> None:
    rng = np.random.default_rng(0)
    rewards = np.array([1.0, 0.0, 2.0])
    same = [{**random_episode(3, rng), "rewards": rng.permutation(rewards)} for _ in range(4)]
    write_dataset("test/same-v0", same)
    data = gem_policy.training.load("test/same-v0")
    prepare(data, SHORT, CPU)
    config = TrainConfig(**{**vars(SHORT), "return_normalization": True})
    with pytest.raises(TrainingError, match="all 3.*reward_scale instead"):
        prepare(data, config, CPU)
