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
from tiny_runs import SHORT, TINY, Stop, random_dataset, run, stop_at
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gem_policy.config import NetworkConfig
from gem_policy.errors import TrainingError
from gem_policy.training import cuda_graph
from gem_policy.training.config import TrainConfig
from gem_policy.training.cuda_graph import (
    Again,
    GraphedUpdates,
    Record,
    Work,
    record_cuda_graph,
)
from gem_policy.training.dataset import Dataset
from gem_policy.training.learners import Learner, Metrics
from gem_policy.training.packed import PackedTransitions
from gem_policy.training.preparation import prepare
from gem_policy.training.replay import Replay, Sampler
from gem_policy.training.seeds import fit_seeds
from gem_policy.training.trainer import PHASES, Progress, start_learner

# What the short runs learn is beside the point, and so is what they warn of.
pytestmark = pytest.mark.filterwarnings("ignore::gem_policy.errors.TrainingWarning")

CPU = torch.device("cpu")
AHEAD: dict[str, Any] = {"critic_lookahead": True, "step_hidden": (8,)}
Kind = tuple[str, dict[str, Any], TrainConfig]  # phase, changes to the network, settings
KINDS: list[Kind] = [(phase, {}, SHORT) for phase in PHASES] + [
    ("critic", AHEAD, SHORT),
    ("value", {"critic_frequencies": 2}, replace(SHORT, value_steps=3)),
    ("value", {}, replace(SHORT, value_source="critics")),
    ("behavior", {}, replace(SHORT, weight_decay=0.1)),
    ("value", {"critic_hidden": (8, 8)}, replace(SHORT, precision="bfloat16")),
]
SEEDS: dict[str, Any] = {"seeds": 2, "network": TINY}
NAMES = ["behavior", "value", "critic", "actor", "lookahead", "n-step", "IQL", "decay", "bfloat16"]


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


def compare(dataset: Dataset, kind: Kind, device: torch.device, record: Record) -> None:
    """Updates by recording against ordinary ones: metrics, weights, Adam's moments.

    Six whose metrics are read, then three whose are not.
    """
    phase, network, config = kind
    net = NetworkConfig(3, 2, **{**TINY, **network})
    training = moved(prepared(dataset, net.critics, config), device)
    sampler = Sampler(len(training), 16, 0, 0, device)
    plain, recorded = (start_learner(phase, net, config, device) for _ in range(2))
    expected = updated(plain, lambda i: plain.update(training.batch(i)), sampler, 6)
    packed = PackedTransitions(training, recorded.reads)
    graph = GraphedUpdates(recorded, packed.batch, device, record)
    found = updated(recorded, graph, sampler, 6)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    for _ in range(3):
        chosen = sampler(plain.step)
        assert plain.update(training.batch(chosen, plain.reads), told=False) == {}
        assert graph(chosen, told=False) == {}
    assert recorded.step == plain.step == 9
    torch.testing.assert_close(recorded.tensors(), plain.tensors(), rtol=1e-5, atol=1e-6)


def moved(replay: Replay, device: torch.device) -> Replay:
    tensors = {k: v.to(device) for k, v in vars(replay).items() if isinstance(v, Tensor)}
    return replace(replay, **tensors)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_a_recorded_update_done_again_is_the_ordinary_one(dataset: Dataset, kind: Kind) -> None:
    compare(dataset, kind, CPU, record_operations)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_a_captured_update_is_the_ordinary_one(dataset: Dataset, kind: Kind) -> None:
    compare(dataset, kind, torch.device("cuda"), record_cuda_graph)


@pytest.mark.cuda
def test_runs_with_graphs_on_cuda_are_the_ordinary_ones(dataset: Dataset, tmp_path: Path) -> None:
    on_cuda: dict[str, Any] = {"device": "cuda", "cuda_graph": False}
    own = run(dataset, tmp_path / "a", **on_cuda)
    _assert_close([own], [run(dataset, tmp_path / "b", device="cuda")])  # graphs, by default
    _assert_close([own], [run(dataset, tmp_path / "c")])  # nor does the device matter
    many = [
        [path.read_bytes() for path in fit_seeds(dataset, tmp_path / name, SHORT, **options)]
        for name, options in (
            ("d", {**SEEDS, **on_cuda}),
            ("e", {**SEEDS, **on_cuda, "cuda_graph": True}),
        )
    ]
    _assert_close(*many)


@pytest.mark.cuda
def test_metrics_of_several_seeds_on_cuda_are_those_on_a_cpu(
    dataset: Dataset, tmp_path: Path
) -> None:
    """Held-out ones and the critics' spread too, which are computed seed by seed."""
    told: dict[str, dict[str, float]] = {}
    for device in ("cpu", "cuda"):
        seen = told.setdefault(device, {})

        def collect(now: Progress, seen: dict[str, float] = seen) -> None:
            seen.update({f"{name} at {now.done}": x for name, x in now.metrics.items()})

        options: dict[str, Any] = {"device": device, "progress": collect, "log_every": 6}
        fit_seeds(dataset, tmp_path / device, SHORT, **SEEDS, **options)
    assert any("held_out" in name for name in told["cpu"])
    assert any("spread" in name for name in told["cpu"])
    assert told["cuda"] == pytest.approx(told["cpu"], rel=1e-3, abs=1e-4)


@pytest.mark.cuda
def test_a_run_with_graphs_stopped_and_resumed_is_the_run_that_was_not(
    dataset: Dataset, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"device": "cuda", "cuda_graph": True}
    whole = run(dataset, tmp_path / "whole", **options)
    for update in (8, 24, 50):
        out = tmp_path / str(update)
        with pytest.raises(Stop):
            run(dataset, out, progress=stop_at(update), **options)
        assert run(dataset, out, **options) == whole


def test_a_recorded_run_of_several_seeds_is_the_ordinary_one(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [path.read_bytes() for path in fit_seeds(dataset, tmp_path / "a", SHORT, **SEEDS)]
    _record_on_the_cpu(monkeypatch)
    graph = fit_seeds(dataset, tmp_path / "b", SHORT, cuda_graph=True, **SEEDS)
    _assert_close(own, [path.read_bytes() for path in graph])


def test_a_recorded_run_is_the_ordinary_one(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = run(dataset, tmp_path / "a")
    _record_on_the_cpu(monkeypatch)
    _assert_close([own], [run(dataset, tmp_path / "b", cuda_graph=True)])


def _record_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs on the CPU record their updates, by operations."""

    def on_cpu(learner: Learner, batch: Any, device: torch.device) -> GraphedUpdates:
        return GraphedUpdates(learner, batch, device, record_operations)

    monkeypatch.setattr(cuda_graph, "GraphedUpdates", on_cpu)
    for module in ("trainer", "seeds"):
        monkeypatch.setattr(f"gem_policy.training.{module}.records", lambda wanted, *_: wanted)


def _assert_close(some: list[bytes], others: list[bytes]) -> None:
    """The checkpoints hold the same weights, to rounding."""
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(load(one), load(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_no_loss_waits_for_the_device(dataset: Dataset, kind: Kind) -> None:
    phase, network, config = kind
    net = NetworkConfig(3, 2, **{**TINY, **network})
    # Tensors of the meta device hold no numbers: to read one is an error, as is to mix it with one
    # of the CPU. Both would wait for a GPU.
    meta = torch.device("meta")
    training = moved(prepared(dataset, net.critics, config), meta)
    learner = start_learner(phase, net, config, CPU)
    for module in (learner.modules | learner.frozen).values():
        module.to(meta)
    parameters = [p for m in learner.modules.values() for p in m.parameters()]
    loss, metrics = learner.loss(training.batch(Sampler(len(training), 16, 0, 0, meta)(0)))
    gradients = torch.autograd.grad(loss, parameters)
    learner.follow(learner.modules, learner.frozen)
    assert {x.device.type for x in (loss, *metrics.values(), *gradients)} == {"meta"}
    with pytest.raises(RuntimeError, match="meta"):
        float(loss)  # this is what would be seen


def test_graphs_need_cuda(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="need the current CUDA device, got cpu"):
        run(dataset, tmp_path / "run", cuda_graph=True)
    with pytest.raises(TrainingError, match="need the current CUDA device, got cpu"):
        fit_seeds(dataset, tmp_path / "runs", SHORT, cuda_graph=True, **SEEDS)
    assert not (tmp_path / "run").exists()


def test_updates_are_recorded_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for config, device, expected in (
        (SHORT, "cuda", True),
        (SHORT, "cpu", False),
        (SHORT, "cuda:0", True),
        (SHORT, "cuda:1", False),
        (replace(SHORT, dropout=0.1), "cuda", False),
    ):
        assert cuda_graph.records(None, config, torch.device(device)) is expected
        assert cuda_graph.records(False, config, torch.device(device)) is False


def test_dropout_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(TrainingError, match=r"dropout=0\.1"):
        cuda_graph.check_recordable(replace(SHORT, dropout=0.1), torch.device("cuda"))
