from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_runs import SHORT, TINY, random_dataset, run

from gem_policy import checkpoint
from gem_policy.config import NetworkConfig, SelectionConfig
from gem_policy.errors import TrainingWarning
from gem_policy.training.advantages import judge_both, weigh_both
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.generalization import (
    Generalization,
    Known,
    guide,
    measure,
    rank_correlation,
    warn_of_poor_generalization,
)
from gem_policy.training.learners import CriticLearner, Learner, ValueLearner, expect
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Replay
from gem_policy.training.run import gather_settings
from gem_policy.training.seeds import fit_seeds
from gem_policy.training.trainer import Progress, start_learner
from gem_policy.training.validation import evenly_spaced

CPU = torch.device("cpu")
CAUTIOUS = replace(SHORT, cautious=True)


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A handful of transitions, whose episodes may have weights all the same."""
    monkeypatch.setattr("gem_policy.training.preparation.LEAST_TRANSITIONS", 1)
    return random_dataset(tmp_path / "data", [9] * 5)


def models(dataset: Dataset) -> tuple[dict[str, Learner], Replay, Replay]:
    """Models that nobody trained, and transitions of both kinds with advantages."""
    prepared = prepare(dataset, SHORT, CPU)
    net = NetworkConfig(3, 2, **TINY)
    learners = {name: start_learner(name, net, SHORT, CPU) for name in ("behavior", "critic")}
    value = expect(start_learner("value", net, SHORT, CPU), ValueLearner)
    return learners, *judge_both(prepared.training, prepared.held_out, value, SHORT)


def critics_of(learners: dict[str, Learner]) -> CriticLearner:
    return expect(learners["critic"], CriticLearner)


def answered(replay: Replay, learners: dict[str, Learner]) -> Replay:
    """Transitions whose advantages are what the critics say."""
    with torch.no_grad():
        rows = replay.rows[replay.index]
        value = critics_of(learners).critics(rows, replay.actions.unsqueeze(-2)).squeeze(-1)
    return replace(replay, advantages=value.T)


def test_what_is_known_is_the_formula(dataset: Dataset) -> None:
    learners, *parts = models(dataset)
    found = measure(*parts, learners)
    for replay, q, density in zip(
        parts,
        (found.critics.training, found.critics.held_out),
        (found.behavior.training, found.behavior.held_out),
        strict=True,
    ):
        batch, values, likely = evenly_spaced(replay, 100), [], 0.0
        rows = range(len(batch.actions))
        target = [float(batch.advantages[i].double().mean()) for i in rows]
        for i in rows:
            with torch.no_grad():
                value = critics_of(learners).critics(batch.observations[i], batch.actions[i][None])
                mixture = learners["behavior"].modules["behavior"](batch.observations[i])
            values.append(float(value.double().mean()))
            likely += float(mixture.log_prob(batch.actions[i][None])) / 2 / len(rows)
        assert q == pytest.approx(stats.spearmanr(values, target).statistic, abs=1e-4)
        assert density == pytest.approx(likely, rel=1e-4)


def test_critics_that_hit_their_targets_order_all(dataset: Dataset) -> None:
    learners, training, held_out = models(dataset)
    found = measure(answered(training, learners), held_out, learners)
    assert found.critics.training == pytest.approx(1.0)
    flat = replace(held_out, advantages=torch.ones_like(held_out.advantages))
    assert measure(training, flat, learners).critics.held_out is None
    nothing = held_out.batch(torch.arange(0))
    assert rank_correlation(critics_of(learners).critics, nothing) is None


def test_equal_values_share_their_ranks(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    learners, training, _ = models(dataset)
    critics = critics_of(learners).critics
    count, rng = len(training), np.random.default_rng(0)
    value, target = rng.integers(0, 4, count) / 4, rng.integers(0, 5, count) / 4
    advantages = torch.from_numpy(target).float().unsqueeze(-1)
    batch = replace(training, advantages=advantages).batch(torch.arange(count))
    for said, expected in (
        (torch.from_numpy(value).float(), stats.spearmanr(value, target).statistic),
        (torch.zeros(count), 0.0),
    ):
        answer = said[None, :, None]
        monkeypatch.setattr(critics, "forward", lambda *_, found=answer: found)
        assert rank_correlation(critics, batch) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("critics", "behavior", "words"),
    [
        ((0.85, 0.86), (0.9, 0.8), []),
        ((0.36, 0.39), (0.9, 0.41), []),
        ((0.6, 0.3), (None, 0.1), []),
        ((None, 0.1), (0.1, None), []),
        ((0.9, None), (0.1, 3.0), []),
        ((0.6, 0.29), (0.9, 0.8), ["correlation of 0.60"]),
        ((0.96, 0.06), (0.9, 0.8), ["0.06 on held-out episodes"]),
        ((-0.1, -0.01), (0.9, 0.8), ["critics"]),
        ((0.5, 0.0), (0.9, 0.8), ["critics"]),
        ((0.85, 0.86), (0.9, 0.39), ["behavior model", "0.9 nats", "0.4 on held-out"]),
        ((0.96, 0.06), (3.8, -11.9), ["critics", "behavior model"]),
    ],
)
def test_what_is_enough(
    critics: tuple[float | None, float | None],
    behavior: tuple[float | None, float | None],
    words: list[str],
) -> None:
    found = Generalization(Known(*critics), Known(*behavior))
    told = "; ".join(found.lacks)
    assert all(word in told for word in words)
    assert found.enough == (not words)
    bold = TrainConfig(cautious=False)
    assert found.selection(bold) == SelectionConfig()
    if found.enough:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_poor_generalization(found, TrainConfig())
        assert found.selection(TrainConfig()) == SelectionConfig()
    else:
        with pytest.warns(TrainingWarning, match=r"clone.*candidates=1.*episodes help"):
            warn_of_poor_generalization(found, TrainConfig())
        with pytest.warns(TrainingWarning, match=r"all the same \(cautious=false\)"):
            warn_of_poor_generalization(found, bold)
        assert found.selection(TrainConfig()) == SelectionConfig(candidates=1)


def test_a_cautious_run_weighs_only_by_what_is_known(dataset: Dataset) -> None:
    learners, training, held_out = models(dataset)
    asked = replace(SHORT, weight_source="critics")  # `answered` changes what the data say
    weighed = weigh_both(training, held_out, critics_of(learners), asked)
    assert len(weighed[0].weights.unique()) > 1
    for cautious, known in ((True, False), (True, True), (False, False)):
        config = replace(asked, cautious=cautious)
        # What it was trained on may stand for episodes that it knows.
        held = answered(training, learners) if known else held_out
        found = measure(answered(training, learners), held, learners)
        assert found.enough == known
        critic = critics_of(learners)
        got, unseen = guide(answered(training, learners), held, found, critic, config)
        if cautious and not known:
            assert torch.equal(got.weights, training.episode_weights)
            assert torch.equal(unseen.weights, held_out.episode_weights)
        else:
            assert torch.equal(got.weights, weighed[0].weights)
            assert not bool((unseen.weights == 1).all())


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")
def test_nobodys_choice_is_made_by_what_was_measured(dataset: Dataset, tmp_path: Path) -> None:
    played: list[checkpoint.Checkpoint] = []

    def play(now: checkpoint.Checkpoint) -> dict[str, float]:
        played.append(now)
        return {}

    run(dataset, tmp_path / "out", CAUTIOUS, evaluate=play)
    made = checkpoint.load(tmp_path / "out")
    assert [now.config.selection for now in played] == [made.config.selection]
    found = made.provenance["generalization"]
    known = Generalization(Known(**found["critics"]), Known(**found["behavior"]))
    # A dozen updates on random rewards: these critics know nothing, and that is found out.
    assert not known.enough
    assert made.config.selection == SelectionConfig(candidates=1)


def parts_of(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """One network's tensors in a checkpoint."""
    tensors = checkpoint.load(folder).tensors
    return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")
@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("cautious", [True, False])
def test_a_cautious_run_without_knowledge_is_cloning(
    cautious: bool, temperature: float | None, dataset: Dataset, tmp_path: Path
) -> None:
    """It is the behavior model, unless better episodes weigh more."""
    config = replace(SHORT, cautious=cautious, episode_temperature=temperature)
    copies = cautious and temperature is None
    told: list[Progress] = []
    first = run(dataset, tmp_path / "one", config=config, progress=told.append)
    fit_seeds(dataset, tmp_path / "many", config, seeds=2, network=TINY)
    for folder in (tmp_path / "one", tmp_path / "many" / "seed-0", tmp_path / "many" / "seed-1"):
        assert same(parts_of(folder, "actor"), parts_of(folder, "behavior")) == copies
    actor = [now.step for now in told if now.phase == "actor"]
    assert actor == ([12] if copies else list(range(1, 13))) and told[-1].done == told[-1].total
    # Called again it is finished, and trains nothing.
    again: list[Progress] = []
    assert run(dataset, tmp_path / "one", config=config, progress=again.append) == first
    assert again == []


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")
def test_a_clone_of_another_size_is_trained_like_the_behavior_model(
    dataset: Dataset, tmp_path: Path
) -> None:
    network = {**TINY, "actor_components": 3}
    made = []
    for name, temperature in (("a", 0.5), ("b", 3.0)):  # whatever the weights would be
        config = replace(CAUTIOUS, weight_temperature=temperature)
        run(dataset, tmp_path / name, config=config, network=network)
        made.append(parts_of(tmp_path / name, "actor"))
    assert same(*made)
    run(dataset, tmp_path / "bold", network=network)
    assert not same(made[0], parts_of(tmp_path / "bold", "actor"))


@pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")
def test_somebodys_choice_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    """What is not chosen stays as it would be: a clone's N is 1."""
    for name, texts, expected in (
        ("a", ["candidates=5"], SelectionConfig(candidates=5)),
        ("b", ["kappa=0.5"], SelectionConfig(candidates=1, kappa=0.5)),
        ("c", [], SelectionConfig(candidates=1)),
    ):
        run(dataset, tmp_path / name, CAUTIOUS, selection=gather_settings(None, texts).selection)
        assert checkpoint.load(tmp_path / name).config.selection == expected
    whole = SelectionConfig(kappa=0.5)  # all of them
    run(dataset, tmp_path / "d", CAUTIOUS, selection=whole)
    assert checkpoint.load(tmp_path / "d").config.selection == whole
