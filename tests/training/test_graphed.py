"""Recorded updates: what a CUDA graph would do, as far as it can be known without CUDA.

A recording by ``make_fx`` is the list of tensor operations of one update, on the very tensors that
it met, done again when it is called: what a CUDA graph is, on a CPU.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from tiny_runs import SHORT, TINY, random_dataset, run
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gem_policy.config import NetworkConfig
from gem_policy.errors import TrainingError
from gem_policy.training import graphed
from gem_policy.training.config import TrainConfig
from gem_policy.training.dataset import Dataset
from gem_policy.training.graphed import Again, GraphedUpdates, Work
from gem_policy.training.learners import Learner, Metrics
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Batch, Replay, Sampler
from gem_policy.training.seeds import fit_seeds
from gem_policy.training.trainer import PHASES, start_learner

# What the short runs learn is beside the point, and so is what they warn of.
pytestmark = pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")

CPU = torch.device("cpu")
AHEAD: dict[str, Any] = {"critic_lookahead": True, "step_hidden": (8,)}
KINDS = [(phase, {}, SHORT) for phase in PHASES] + [
    ("critic", AHEAD, SHORT),
    ("value", {"critic_frequencies": 2}, replace(SHORT, value_steps=3)),
    ("behavior", {}, replace(SHORT, weight_decay=0.1)),
]
NAMES = ["behavior", "value", "critic", "actor", "lookahead", "n-step", "decay"]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return random_dataset(tmp_path / "data", [9] * 5)


def record_operations(work: Work) -> tuple[Again, Metrics]:
    """Like `record_cuda_graph`; unlike a capture, it also does the work once."""
    told: Metrics = {}

    def traced() -> list[Tensor]:
        metrics = work()
        told.update({name: torch.zeros(value.shape) for name, value in metrics.items()})
        return list(metrics.values())

    recorded = make_fx(traced)()

    def again() -> None:
        with torch.no_grad():
            for kept, value in zip(told.values(), recorded(), strict=True):
                kept.copy_(value)

    return again, told


def prepared(dataset: Dataset, members: int, config: TrainConfig) -> Replay:
    training = prepare(dataset, config, CPU).training
    generator = torch.Generator().manual_seed(3)
    return replace(
        training,
        advantages=torch.randn(len(training), members, generator=generator),
        weights=torch.rand(len(training), generator=generator) + 0.1,
    )


def updated(learner: Learner, update: Any, sampler: Sampler, count: int) -> list[dict[str, float]]:
    return [
        {name: float(x) for name, x in update(sampler(learner.step)).items()} for _ in range(count)
    ]


@pytest.mark.parametrize(("phase", "network", "config"), KINDS, ids=NAMES)
def test_a_recorded_update_done_again_is_the_ordinary_one(
    dataset: Dataset, phase: str, network: dict[str, Any], config: TrainConfig
) -> None:
    net = NetworkConfig(3, 2, **{**TINY, **network})
    training = prepared(dataset, net.critics, config)
    sampler = Sampler(len(training), 16, 0, 0)
    plain, recorded = (start_learner(phase, net, config, CPU) for _ in range(2))
    expected = updated(plain, lambda i: plain.update(training.batch(i)), sampler, 6)
    graph = GraphedUpdates(recorded, training.batch, CPU, record_operations)
    found = updated(recorded, graph, sampler, 6)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    assert recorded.step == plain.step == 6
    for name, value in plain.tensors().items():
        torch.testing.assert_close(recorded.tensors()[name], value, rtol=1e-5, atol=1e-6)


def test_a_recorded_run_of_several_seeds_is_the_ordinary_one(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [path.read_bytes() for path in fit_seeds(dataset, tmp_path / "a", SHORT, **SEEDS)]
    _record_on_the_cpu(monkeypatch)
    graph = fit_seeds(dataset, tmp_path / "b", SHORT, cuda_graph=True, **SEEDS)
    assert _close(own, [path.read_bytes() for path in graph])


def test_a_recorded_run_is_the_ordinary_one(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = run(dataset, tmp_path / "a")
    _record_on_the_cpu(monkeypatch)
    assert _close([own], [run(dataset, tmp_path / "b", cuda_graph=True)])


SEEDS: dict[str, Any] = {"seeds": 2, "network": TINY}


def _record_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs on the CPU record their updates, by operations."""

    def on_cpu(learner: Learner, batch: Any, device: torch.device) -> GraphedUpdates:
        return GraphedUpdates(learner, batch, device, record_operations)

    monkeypatch.setattr(graphed, "GraphedUpdates", on_cpu)
    for module in ("trainer", "seeds"):
        monkeypatch.setattr(f"gem_policy.training.{module}.check_recordable", lambda *_: None)


def _close(some: list[bytes], others: list[bytes]) -> bool:
    """Whether checkpoints hold the same weights, to rounding."""
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(load(one), load(other), rtol=1e-4, atol=1e-5)
    return True


@pytest.mark.parametrize(("phase", "network", "config"), KINDS, ids=NAMES)
def test_nothing_in_an_update_waits_for_the_device(
    dataset: Dataset, phase: str, network: dict[str, Any], config: TrainConfig
) -> None:
    net = NetworkConfig(3, 2, **{**TINY, **network})
    training = prepared(dataset, net.critics, config)
    learner = start_learner(phase, net, config, CPU)
    # Tensors of the meta device hold no numbers: to read one is an error, as is to mix it with one
    # of the CPU. Both would wait for a GPU.
    moved = _without_numbers(learner, training)
    loss, metrics = learner.loss(moved.batch(torch.empty(16, dtype=torch.long, device="meta")))
    gradients = torch.autograd.grad(loss, learner.parameters)
    learner.follow(learner.modules, learner.frozen)
    assert {x.device.type for x in (loss, *metrics.values(), *gradients)} == {"meta"}
    with pytest.raises(RuntimeError, match="meta"):
        float(loss)  # this is what would be seen


def _without_numbers(learner: Learner, training: Replay) -> Replay:
    """The replay on the meta device; the learner's networks are moved there too."""
    for module in (learner.modules | learner.frozen).values():
        module.to("meta")
    learner.parameters = [p for m in learner.modules.values() for p in m.parameters()]
    tensors = {k: v.to("meta") for k, v in vars(training).items() if isinstance(v, Tensor)}
    return replace(training, **tensors)


def test_graphs_need_cuda(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="need a CUDA device, got cpu"):
        run(dataset, tmp_path / "run", cuda_graph=True)
    with pytest.raises(TrainingError, match="need a CUDA device, got cpu"):
        fit_seeds(dataset, tmp_path / "runs", SHORT, cuda_graph=True, **SEEDS)
    assert not (tmp_path / "run").exists()


def test_dropout_cannot_be_recorded() -> None:
    with pytest.raises(TrainingError, match=r"dropout=0\.1"):
        graphed.check_recordable(replace(SHORT, dropout=0.1), torch.device("cuda"))


@pytest.mark.cuda
@pytest.mark.parametrize(("phase", "network", "config"), KINDS, ids=NAMES)
def test_a_captured_update_is_the_ordinary_one(
    dataset: Dataset, phase: str, network: dict[str, Any], config: TrainConfig
) -> None:
    device = torch.device("cuda")
    net = NetworkConfig(3, 2, **{**TINY, **network})
    training = prepared(dataset, net.critics, config)
    training = replace(
        training, **{k: v.to(device) for k, v in vars(training).items() if isinstance(v, Tensor)}
    )
    sampler = Sampler(len(training), 16, 0, 0)
    plain, captured = (start_learner(phase, net, config, device) for _ in range(2))

    def batch(chosen: Tensor) -> Batch:
        return training.batch(chosen.to(device))

    expected = updated(plain, lambda i: plain.update(batch(i)), sampler, 6)
    found = updated(captured, GraphedUpdates(captured, training.batch, device), sampler, 6)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    for name, value in plain.tensors().items():
        torch.testing.assert_close(captured.tensors()[name], value, rtol=1e-4, atol=1e-5)
