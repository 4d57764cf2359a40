"""Updates whose hidden layers are rounded to bfloat16: which, how far off, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import SHORT, TINY, random_dataset

from gem_policy import checkpoint as files
from gem_policy.config import NetworkConfig
from gem_policy.errors import ConfigError
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.learners import Learner
from gem_policy.training.precision import lower_hidden
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Replay
from gem_policy.training.stacked import StackedLearner
from gem_policy.training.trainer import PHASES, fit, start_learner

# What the short run learns is beside the point, and so is what it warns of.
pytestmark = pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")

CPU = torch.device("cpu")
DEEP: dict[str, Any] = {
    **TINY,
    **{f"{kind}_hidden": (16, 16, 16) for kind in ("actor", "behavior", "critic", "step")},
}
LOW = replace(SHORT, precision="bfloat16")
KINDS = [(phase, {}) for phase in PHASES] + [("critic", {"critic_lookahead": True})]
NAMES = [*PHASES, "lookahead"]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return random_dataset(tmp_path / "data", [9] * 5)


def judged(dataset: Dataset, members: int) -> Replay:
    """The training transitions, with advantages and weights drawn."""
    replay = prepare(dataset, SHORT, CPU).training
    generator = torch.Generator().manual_seed(3)
    size = len(replay)
    return replace(
        replay,
        advantages=torch.randn(size, members, generator=generator),
        weights=torch.rand(size, generator=generator) + 0.1,
    )


def test_only_what_lies_between_two_hidden_layers_is_rounded() -> None:
    sizes = {"weights": 4, "biases": 4}
    names = [f"a.{kind}.{i}" for kind, count in sizes.items() for i in range(count)]
    names += ["b.weights.0", "b.weights.1", "units.change"]
    lowered = lower_hidden({name: torch.full((2,), 1 / 3) for name in names}, "bfloat16")
    inside = {f"a.{kind}.{i}" for kind in sizes for i in (1, 2)}
    assert {name for name, value in lowered.items() if value.dtype == torch.bfloat16} == inside
    assert {value.dtype for name, value in lowered.items() if name not in inside} == {torch.float32}


@pytest.mark.parametrize(("phase", "network"), KINDS, ids=NAMES)
def test_an_update_is_the_ordinary_one_to_three_digits(
    dataset: Dataset, phase: str, network: dict[str, Any]
) -> None:
    net = NetworkConfig(3, 2, **{**DEEP, **network})
    batch = judged(dataset, net.critics).batch(torch.arange(20))
    plain, low = (start_learner(phase, net, config, CPU) for config in (SHORT, LOW))
    losses, gradients = [], []
    for learner in (plain, low):
        losses.append(float(learner.update(batch)[f"{phase}/{_loss(phase)}"]))
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters]))  # type: ignore[union-attr]
    assert losses[0] != losses[1], "nothing was rounded"
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    angle = torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0)
    assert float(angle) > 0.999
    assert {value.dtype for value in low.tensors().values()} == {torch.float32}


def _loss(phase: str) -> str:
    return "log_prob" if phase in ("behavior", "actor") else "loss"


@pytest.mark.parametrize(("phase", "network"), KINDS, ids=NAMES)
def test_a_stacked_update_rounds_as_each_seeds_own(
    dataset: Dataset, phase: str, network: dict[str, Any]
) -> None:
    net = NetworkConfig(3, 2, **{**DEEP, **network})
    seeds = [4, 5]
    replay = judged(dataset, net.critics)
    both, halves = torch.arange(20), torch.arange(20).split(10)

    def started(config: TrainConfig) -> list[Learner]:
        return [start_learner(phase, net, replace(config, seed=seed), CPU) for seed in seeds]

    def stacked(config: TrainConfig) -> torch.Tensor:
        return StackedLearner(started(config), seeds).evaluate(replay.batch(both))[0]

    pairs = zip(started(LOW), halves, strict=True)
    alone = torch.stack([own.evaluate(replay.batch(half))[0] for own, half in pairs]).sum()
    # A stacked product adds its bias after rounding.
    torch.testing.assert_close(stacked(LOW), alone, rtol=2e-3, atol=0)
    assert stacked(LOW) != stacked(SHORT), "nothing was rounded"


def test_a_run_says_how_it_was_computed_and_stays_reproducible(
    dataset: Dataset, tmp_path: Path
) -> None:
    runs = {
        name: files.load(fit(dataset, tmp_path / name, config, network=DEEP))
        for name, config in {"low": LOW, "again": LOW, "plain": SHORT}.items()
    }
    assert runs["low"].provenance["train"]["precision"] == "bfloat16"
    for name, tensor in runs["low"].tensors.items():
        assert tensor.dtype == runs["plain"].tensors[name].dtype
        assert torch.equal(tensor, runs["again"].tensors[name]), name
    name = "critic.weights.1"
    assert not torch.equal(runs["low"].tensors[name], runs["plain"].tensors[name])


def test_other_precisions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"`precision`.*float32.*bfloat16.*got 'float16'"):
        replace(SHORT, precision="float16")
