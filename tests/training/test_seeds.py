"""Seeds trained at once: each is what it is alone, and a stopped run goes on to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_datasets import GOALS, random_episode, write_dataset
from tiny_runs import Stop, stop_at

from gem_policy import checkpoint as files
from gem_policy.errors import ConfigError, TrainingError
from gem_policy.training import run as command
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset, load
from gem_policy.training.learners import ValueLearner
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Sampler
from gem_policy.training.seeds import fit_seeds, metrics_of
from gem_policy.training.shared_replay import SharedSampler, share
from gem_policy.training.stacked import StackedLearner
from gem_policy.training.state import STATE_FILE, read_state
from gem_policy.training.trainer import PHASES, Progress, fit, network_for, start_learner
from gem_policy.training.validation import evenly_spaced

# What these runs learn is beside the point, and so is what they warn of.
pytestmark = pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")

TINY = {
    "actor_hidden": (8,),
    "behavior_hidden": (8,),
    "critic_hidden": (8, 8),
    "critics": 2,
    "critic_frequencies": 2,
    "step_hidden": (8,),
    "actor_components": 2,
    "behavior_components": 2,
}
SHORT = TrainConfig(
    seed=4,
    behavior_updates=7,
    value_updates=12,
    critic_updates=7,
    actor_updates=7,
    batch_size=16,
    holdout=0.3,
    cautious=False,  # as in tiny_runs
    target_rate=0.1,
    responsibility_floor=0.01,
)
SEEDS = [4, 5, 6]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("data")
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        rng = np.random.default_rng(0)
        # Of different lengths, so that the seeds train on different numbers of transitions.
        episodes = [random_episode(5 + i, rng, GOALS, terminated=i % 2 == 0) for i in range(8)]
        write_dataset("test/goal-v0", episodes, observation_space=GOALS)
        yield folder


@pytest.fixture(scope="module")
def dataset(root: Path) -> Dataset:
    return load("test/goal-v0")


def run(dataset: Dataset, out: Path, config: TrainConfig = SHORT, **kwargs: Any) -> list[bytes]:
    options: dict[str, Any] = {
        "seeds": 3,
        "network": TINY,
        "log_every": 3,
        "save_seconds": 0.0,
        **kwargs,
    }
    paths = fit_seeds(dataset, out, config, **options)
    assert paths == [out / f"seed-{config.seed + i}" / files.WEIGHTS_FILE for i in range(3)]
    return [path.read_bytes() for path in paths]


# -- each seed is what it is alone -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "value_steps", "lookahead"),
    [("critics", 1, False), ("data", 3, False), ("data", 1, True)],
)
def test_each_seed_is_the_run_that_it_is_alone(
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    value_steps: int,
    lookahead: bool,
) -> None:
    monkeypatch.setattr("gem_policy.training.preparation.LEAST_TRANSITIONS", 1)
    config = replace(SHORT, value_source=source, weight_source=source, value_steps=value_steps)
    network = {**TINY, "critic_lookahead": lookahead}
    if value_steps > 1:  # the other phases are shorter, and other options are on
        config = replace(config, behavior_updates=2, critic_updates=3, actor_updates=3)
        config = replace(config, weight_decay=0.5, return_normalization=True, critic_steps=2)
    told: list[Progress] = []
    run(dataset, tmp_path, config, network=network, progress=told.append, save_seconds=60.0)
    for seed in SEEDS:
        alone: list[Progress] = []
        own = replace(config, seed=seed)
        path = fit(
            dataset, tmp_path / "alone", own, network=network, log_every=3, progress=alone.append
        )
        expected, got = files.load(path), files.load(tmp_path / f"seed-{seed}")
        (tmp_path / "alone" / STATE_FILE).unlink()
        unit = got.config.gain_unit
        assert 0 < unit == pytest.approx(expected.config.gain_unit, rel=1e-3)
        assert replace(got.config, gain_unit=expected.config.gain_unit) == expected.config
        measured = expected.provenance["generalization"]
        rounded = {
            "critic_spread": pytest.approx(expected.provenance["critic_spread"], rel=1e-4),
            "generalization": {
                k: pytest.approx(v, rel=1e-4, abs=1e-5) for k, v in measured.items()
            },
        }
        assert got.provenance == {**expected.provenance, **rounded}
        assert got.provenance["train"]["seed"] == seed
        effective = got.provenance["episode_weights"]["effective_transitions"]
        assert 1 < effective < 0.99 * got.provenance["dataset_steps"] * (1 - config.holdout)
        for name, tensor in expected.tensors.items():
            torch.testing.assert_close(got.tensors[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
        for mine, theirs in zip(told, alone, strict=True):
            assert (mine.phase, mine.step, mine.done) == (theirs.phase, theirs.step, theirs.done)
            own_metrics = metrics_of(seed, mine.metrics)
            assert own_metrics == pytest.approx(dict(theirs.metrics), rel=1e-3, abs=1e-4)
    statistics = [files.load(tmp_path / f"seed-{s}").tensors["observation.mean"] for s in SEEDS]
    assert not torch.equal(statistics[0], statistics[1])
    weights = [files.load(tmp_path / f"seed-{s}").tensors["actor.weights.0"] for s in SEEDS]
    assert float((weights[0] - weights[1]).abs().max()) > 0.1, "far above the tolerance"


def test_evenly_spaced_transitions_are_those_of_the_seeds_own_replay(dataset: Dataset) -> None:
    configs = [replace(SHORT, seed=seed) for seed in SEEDS]
    shared = share(dataset, configs, CPU)
    for i, config in enumerate(configs):
        training = prepare(dataset, config, CPU).training
        for rows in (7, 10**6):
            own = evenly_spaced(training, rows)
            got = shared.evenly_spaced(i, rows, frozenset({"observations", "actions", "weights"}))
            assert len(own.actions) == min(rows, len(training))
            for name in ("observations", "actions", "weights"):
                assert torch.equal(getattr(got, name), getattr(own, name))


def test_each_seeds_batches_are_to_the_bit_those_of_its_own_replay(dataset: Dataset) -> None:
    configs = [replace(SHORT, seed=seed, value_steps=3) for seed in SEEDS]
    shared = share(dataset, configs, CPU)
    marked = replace(
        shared,
        advantages=torch.arange(2.0 * len(shared.numbers)).reshape(-1, 2),
        weights=torch.arange(1.0 * len(shared.numbers)),
    )
    sizes = []
    start = 0
    for i, config in enumerate(configs):
        own = prepare(dataset, config, CPU).training
        stop = start + len(own)
        own = replace(
            own, advantages=marked.advantages[start:stop], weights=marked.weights[start:stop]
        )
        for step in (0, 600):
            batch = marked.batch(SharedSampler(shared, configs, 2)(step))
            expected = own.batch(Sampler(len(own), 16, config.seed, 2)(step))
            here = slice(16 * i, 16 * (i + 1))
            for name, value in vars(expected).items():
                if name == "ahead":
                    for inner, tensor in vars(value).items():
                        assert torch.equal(getattr(batch.ahead, inner)[here], tensor), inner
                else:
                    assert torch.equal(getattr(batch, name)[here], value), name
        sizes.append(len(own))
        start = stop
    assert len(set(sizes)) > 1 and start == len(shared.numbers)


def test_the_stacked_gradient_is_that_of_each_loss(dataset: Dataset) -> None:
    configs = [replace(SHORT, seed=seed) for seed in SEEDS]
    net = network_for(dataset, TINY)
    single = [start_learner("value", net, config, CPU) for config in configs]
    before = [{k: v.clone() for k, v in own.tensors().items()} for own in single]
    stacked = StackedLearner(single, SEEDS)
    shared = share(dataset, configs, CPU)
    batch = shared.batch(SharedSampler(shared, configs, 1)(0))
    loss, metrics = stacked.loss(batch)
    gradients = torch.autograd.grad(loss, stacked.parameters)
    stacked.update(batch)
    total = 0.0
    for i, config in enumerate(configs):
        own = start_learner("value", net, config, CPU)
        assert isinstance(own, ValueLearner)
        replay = prepare(dataset, config, CPU).training
        part = replay.batch(Sampler(len(replay), 16, config.seed, 1)(0))
        alone, told = own.loss(part)
        total += float(alone.detach())
        assert float(metrics["value/loss"][i]) == pytest.approx(float(told["value/loss"]), rel=1e-5)
        for one, many in zip(torch.autograd.grad(alone, own.parameters), gradients, strict=True):
            torch.testing.assert_close(many[i], one)
        # The views follow the stacked weights, and the target moves for every seed.
        own.update(part)
        after = {**single[i].modules["value"].state_dict()}
        for key, value in own.modules["value"].state_dict().items():
            torch.testing.assert_close(after[key], value)
        for key, value in own.target.state_dict().items():
            torch.testing.assert_close(single[i].frozen["target"].state_dict()[key], value)
            assert not torch.equal(value, before[i][f"target.{key}"])
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)


# -- stopped and resumed ---------------------------------------------------------------------------


def test_a_run_stopped_anywhere_and_resumed_is_the_run_that_was_not(
    dataset: Dataset, tmp_path: Path
) -> None:
    whole = run(dataset, tmp_path / "whole")
    assert len(set(whole)) == 3
    for update in (12, 30):  # among the values, and when all that depends on them is made again
        out = tmp_path / str(update)
        with pytest.raises(Stop):
            run(dataset, out, progress=stop_at(update))
        seen: list[Progress] = []
        assert run(dataset, out, progress=seen.append) == whole
        assert 1 < seen[0].done <= update, "it began again"
    seen = []
    assert run(dataset, tmp_path / "whole", progress=seen.append) == whole
    assert seen == [], "a finished run is not trained again"


def test_a_run_of_one_seed_and_of_several_do_not_resume_each_other(
    dataset: Dataset, tmp_path: Path
) -> None:
    shortest: dict[str, Any] = {f"{phase}_updates": 1 for phase in PHASES}
    config = replace(SHORT, **shortest)
    fit(dataset, tmp_path / "one", config, network=TINY)
    with pytest.raises(TrainingError, match=r"settings or data \(seeds: None then, 3 now\)"):
        run(dataset, tmp_path / "one", config)
    run(dataset, tmp_path / "three", config)
    with pytest.raises(TrainingError, match=r"settings or data \(seeds: 3 then, 2 now\)"):
        fit_seeds(dataset, tmp_path / "three", config, seeds=2, network=TINY)
    with pytest.raises(TrainingError, match="seeds: 3 then, None now"):
        fit(dataset, tmp_path / "three", config, network=TINY)


def test_seeds_must_be_a_count(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`seeds` must be"):
        fit_seeds(dataset, tmp_path, SHORT, seeds=0)
    with pytest.raises(ConfigError, match="`seed` must be"):
        fit_seeds(dataset, tmp_path, replace(SHORT, seed=2**24 - 1), seeds=2)


@pytest.mark.parametrize("option", [{"dropout": 0.1}, {"patience": 3}])
def test_what_cannot_be_batched_is_refused(
    dataset: Dataset, tmp_path: Path, option: dict[str, Any]
) -> None:
    (name, value), *_ = option.items()
    told = f"trained without {name}, got {name}={value}. Leave it out"
    with pytest.raises(TrainingError, match=told):
        run(dataset, tmp_path, replace(SHORT, **option))


def test_several_seeds_are_not_played_while_they_are_trained(
    dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="Leave out --evaluate-every"):
        command.run(
            dataset, tmp_path, command.Settings(), CPU, None, [], evaluate=lambda _: {}, seeds=2
        )


# -- broken ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["value/loss", "value.weights.0"])
def test_a_broken_seed_stops_the_run_and_is_named(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """By its loss, or after a fine loss by its weights; the other seeds are not accused."""
    honest = StackedLearner.update

    def spoil(self: StackedLearner, batch: Any, told: bool) -> Any:
        metrics = honest(self, batch, told)
        if "value" in self.modules and self.step == 9:
            if where == "value/loss":
                metrics["value/loss"][1] = torch.nan
            else:
                with torch.no_grad():
                    next(self.learners[1].modules["value"].parameters()).view(-1)[0] = torch.nan
        return metrics

    monkeypatch.setattr(StackedLearner, "update", spoil)
    with pytest.raises(TrainingError, match="by update 9 of the value phase") as told:
        run(dataset, tmp_path)
    assert f"seed-5/{where}" in str(told.value)
    assert "seed-4" not in str(told.value) and "seed-6" not in str(told.value)
    state = read_state(tmp_path)
    assert (state.phase, state.step) == ("value", 6)
    assert all(torch.isfinite(t).all() for t in state.tensors.values())
    assert not list(tmp_path.glob(f"*/{files.WEIGHTS_FILE}"))


def test_a_seed_whose_values_diverge_is_named(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = StackedLearner.update

    def spoil(self: StackedLearner, batch: Any, told: bool) -> Any:
        metrics = honest(self, batch, told)
        if "value" in self.modules and self.step == 9:
            metrics["value/largest"][2] = 1e6
        return metrics

    monkeypatch.setattr(StackedLearner, "update", spoil)
    with pytest.raises(TrainingError, match=r"(?s)values diverge.*update 9 .*Seed 6 diverged"):
        run(dataset, tmp_path)
