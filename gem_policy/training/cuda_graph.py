"""Updates recorded once and launched as one CUDA graph.

An update of these small networks is some hundred kernels, and a GPU waits for the CPU to launch
each of them. A graph is launched as one. It reads and writes the same memory every time, so what
changes from update to update goes through tensors: the numbers of the batch's transitions, and the
learning rate. The batch itself is gathered on the device, inside the graph.

Off by default: no GPU was at hand to run it on. What can be known without one is tested: a recorded
update does what an ordinary one does, and no learner's loss waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from gem_policy.errors import TrainingError
from gem_policy.training.config import TrainConfig
from gem_policy.training.learners import Learner, Metrics
from gem_policy.training.replay import Batch, Replay
from gem_policy.training.shared_replay import SharedReplay

WARM_UP = 3  # updates before the recording, which torch needs to make its workspaces

Work = Callable[[], Metrics]
Again = Callable[[], None]
Record = Callable[[Work], tuple[Again, Metrics]]


def record_cuda_graph(work: Work) -> tuple[Again, Metrics]:
    """Capture the kernels of ``work``; they are not run yet.

    Returns:
        What launches them, and the tensors that hold the metrics afterwards.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        metrics = work()
    return graph.replay, metrics


class GraphedUpdates:
    """A learner's updates, the first of which records what all of them do.

    Args:
        learner: Whose; it is changed as `Learner.update` changes it.
        batch: The batch of transitions with the given numbers.
        device: Where it is gathered.
        record: Records a piece of work without a lasting effect, or with one that is undone.
    """

    def __init__(
        self,
        learner: Learner,
        batch: Callable[[Tensor], Batch],
        device: torch.device,
        record: Record = record_cuda_graph,
    ) -> None:
        self.learner, self.batch, self.device, self.record = learner, batch, device, record
        self.chosen = torch.empty(0, dtype=torch.long, device=device)
        self._again: Again | None = None
        self._metrics: Metrics = {}
        learner.make_recordable()

    def __call__(self, chosen: Int[Tensor, "*batch"]) -> Metrics:
        """One update on these transitions; the metrics are overwritten by the next one."""
        if self._again is None:
            self.chosen = chosen.to(self.device, copy=True)
            self._again, self._metrics = self._recorded()
        self.chosen.copy_(chosen)
        self.learner.set_rate()
        self._again()
        self.learner.step += 1
        return self._metrics

    def _recorded(self) -> tuple[Again, Metrics]:
        """The update's recording; the learner is as before."""
        before = {name: value.clone() for name, value in self.learner.tensors().items()}
        self._warm_up()
        recorded = self.record(self._work)
        self.learner.restore(before, self.learner.step)
        return recorded

    def _work(self) -> Metrics:
        return self.learner.apply(self.batch(self.chosen))

    def _warm_up(self) -> None:
        """Some updates on a stream of their own, as torch's notes on CUDA graphs ask for."""
        if self.device.type != "cuda":
            return
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._work()
        torch.cuda.current_stream(self.device).wait_stream(stream)


def updates_of(
    learner: Learner,
    transitions: Replay | SharedReplay,
    sampler: Callable[[int], Tensor],
    cuda_graph: bool,
) -> Work:
    """A function that does the learner's next update and returns its metrics.

    Args:
        learner: Whose updates.
        transitions: What its batches are taken from.
        sampler: The numbers of the transitions of an update, on their device.
        cuda_graph: Whether updates are recorded and launched as one graph.
    """
    if cuda_graph:
        graphed = GraphedUpdates(learner, transitions.batch, transitions.device)
        return lambda: graphed(sampler(learner.step))
    return lambda: learner.update(transitions.batch(sampler(learner.step)))


def check_recordable(config: TrainConfig, device: torch.device) -> None:
    """Raise a `TrainingError` where updates cannot be recorded."""
    if device.type != "cuda":
        raise TrainingError(
            f"CUDA graphs need a CUDA device, got {device}. Leave cuda_graph out, or pass "
            "device='cuda'."
        )
    if config.dropout:
        raise TrainingError(
            f"An update with dropout={config.dropout} draws new masks on the CPU and cannot be "
            "recorded. Leave out cuda_graph, or dropout."
        )
