"""Updates recorded once and launched as one CUDA graph; see `gem_policy.cuda_graph`.

A graph reads and writes the same memory every time, so what changes from update to update goes
through tensors: the numbers of the batch's transitions, and the learning rate. The batch itself is
gathered on the device, inside the graph, from a table of what the loss reads. It takes about as
much memory as the transitions themselves, and with several seeds as much for each of them: where a
GPU has too little, leave graphs out.

What can be known without CUDA is tested everywhere: a recorded update does what an ordinary one
does, and no learner's loss waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from gem_policy.cuda_graph import Again, is_current_cuda, record_cuda_graph, warm_up
from gem_policy.errors import TrainingError
from gem_policy.training.config import TrainConfig
from gem_policy.training.learners import Learner, Metrics
from gem_policy.training.packed import PackedTransitions
from gem_policy.training.replay import Batch, Replay
from gem_policy.training.shared_replay import SharedReplay

Work = Callable[[], Metrics]
Update = Callable[[bool], Metrics]
Record = Callable[[Work], tuple[Again, Metrics]]


class GraphedUpdates:
    """A learner's updates, the first of which records what all of them do.

    There are two recordings, made when they are first needed: with metrics and without.

    Args:
        learner: Whose; it is changed as `Learner.update` changes it.
        batch: The batch of transitions with the given numbers, with what the loss reads.
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
        self._recorded: dict[bool, tuple[Again, Metrics]] = {}
        learner.make_recordable()

    def __call__(self, chosen: Int[Tensor, "*batch"], told: bool = True) -> Metrics:
        """One update on these transitions; the metrics are overwritten by the next one."""
        if not self._recorded:
            self.chosen = chosen.to(self.device, copy=True)
        self.chosen.copy_(chosen)
        if told not in self._recorded:
            self._recorded[told] = self._record(told)
        again, metrics = self._recorded[told]
        self.learner.set_rate()
        again()
        self.learner.step += 1
        return metrics

    def _record(self, told: bool) -> tuple[Again, Metrics]:
        """The update's recording; the learner is as before."""
        before = {name: value.clone() for name, value in self.learner.tensors().items()}
        warm_up(lambda: self._work(told), self.device)
        recorded = self.record(lambda: self._work(told))
        self.learner.restore(before, self.learner.step)
        return recorded

    def _work(self, told: bool) -> Metrics:
        return self.learner.apply(self.batch(self.chosen), told)


def updates_of(
    learner: Learner,
    transitions: Replay | SharedReplay,
    sampler: Callable[[int], Tensor],
    cuda_graph: bool,
) -> Update:
    """A function that does the learner's next update, and returns its metrics if they are wanted.

    Args:
        learner: Whose updates.
        transitions: What its batches are taken from.
        sampler: The numbers of the transitions of an update, on their device.
        cuda_graph: Whether updates are recorded and launched as one graph.
    """
    if cuda_graph:
        packed = PackedTransitions(transitions, learner.reads)
        graphed = GraphedUpdates(learner, packed.batch, transitions.device)
        return lambda told: graphed(sampler(learner.step), told)
    return lambda told: learner.update(
        transitions.batch(sampler(learner.step), learner.reads), told
    )


def records(wanted: bool | None, config: TrainConfig, device: torch.device) -> bool:
    """Whether updates are to be recorded; None: where they can be.

    Raises:
        TrainingError: They are to be, and cannot.
    """
    if wanted is None:
        return is_current_cuda(device) and not config.dropout
    if wanted:
        check_recordable(config, device)
    return wanted


def check_recordable(config: TrainConfig, device: torch.device) -> None:
    """Raise a `TrainingError` where updates cannot be recorded."""
    if not is_current_cuda(device):
        raise TrainingError(
            f"CUDA graphs need the current CUDA device, got {device}. Leave cuda_graph out, or "
            "pass device='cuda' (torch.cuda.set_device chooses one)."
        )
    if config.dropout:
        raise TrainingError(
            f"An update with dropout={config.dropout} draws new masks on the CPU and cannot be "
            "recorded. Leave out cuda_graph, or dropout."
        )
