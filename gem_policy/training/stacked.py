"""Several seeds' learners of one phase as one learner: stacked parameters, one loss, one Adam.

A GPU spends most of an update of these small networks waiting for the next kernel. S seeds stacked
need hardly more kernels than one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gem_policy.training.learners import Learner, Metrics
from gem_policy.training.precision import LossOf, lower_hidden
from gem_policy.training.replay import Ahead, Batch


class StackedLearner(Learner):
    """S learners that differ in their seed only, updated as one.

    The loss of every seed is the learners' own, evaluated by `torch.func.vmap` for all parameters
    and batches at once, and summed: a seed's gradient is what it would be alone. Adam and `follow`
    work element by element, so stacking changes nothing about them.

    The given learners' weights become views of the stacked ones: they always are those of the
    last update, to evaluate or to export. They are not to be updated one by one any more.

    Args:
        learners: Of one phase, before the first update.
        seeds: Seed of each.
    """

    def __init__(self, learners: Sequence[Learner], seeds: Sequence[int]) -> None:
        first = learners[0]
        self.learners, self.seeds = list(learners), list(seeds)
        self.reads = first.reads
        modules = {name: _stack([own.modules[name] for own in learners]) for name in first.modules}
        frozen = {name: _stack([own.frozen[name] for own in learners]) for name in first.frozen}
        super().__init__(
            modules, first.rate, first.updates, first.weight_decay, frozen, first.precision
        )
        for own in learners:
            own.optimizer.state.clear()  # moments that nobody will use
            own.moments.clear()
        self._one = LossOf(
            lambda fields, told: first.loss(
                Batch(**{**fields, "ahead": Ahead(**fields["ahead"])}), told
            ),
            first.modules | first.frozen,
        )
        self._stacked: dict[str, Tensor] = {
            f"{name}.{key}": value
            for name, module in (self.modules | self.frozen).items()
            for key, value in module.named_parameters()
        }

    def loss(self, batch: Batch, told: bool = True) -> tuple[Tensor, Metrics]:
        """Sum of the seeds' losses, and their metrics with the seeds as first axis.

        The batch holds one part per seed, of equal sizes, in order.
        """
        parts = _split(batch, len(self.seeds))
        lowered = lower_hidden(self._stacked, self.precision)
        losses, metrics = torch.func.vmap(partial(self._loss_of_one, told))(lowered, parts)
        return losses.sum(), metrics

    def _loss_of_one(
        self, told: bool, parameters: dict[str, Tensor], part: Any
    ) -> tuple[Tensor, Metrics]:
        """A seed's loss, with its parameters, on its part of the batch."""
        found: tuple[Tensor, Metrics] = torch.func.functional_call(
            self._one, parameters, (part, told)
        )
        return found

    def lowered_loss(self, batch: Batch, told: bool = True) -> tuple[Tensor, Metrics]:
        """The loss, which has lowered the stacked parameters itself."""
        return self.loss(batch, told)

    def follow(self, modules: Mapping[str, nn.Module], frozen: Mapping[str, nn.Module]) -> None:
        """The learners' own rule."""
        self.learners[0].follow(modules, frozen)

    def read(self, metrics: Metrics) -> dict[str, float]:
        """The metrics of every seed as numbers, ``seed-3/value/loss``; waits for the device."""
        rows = {key: value.tolist() for key, value in metrics.items()}
        return {
            f"seed-{seed}/{key}": row[i]
            for i, seed in enumerate(self.seeds)
            for key, row in rows.items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """Everything to save, each seed's under a name that says whose it is."""
        named: dict[str, Tensor] = {}
        for name, value in super().tensors().items():
            if value.dim() == 0:  # Adam's count of steps
                named[name] = value
            else:
                named |= {f"seed-{s}/{name}": value[i] for i, s in enumerate(self.seeds)}
        return named


def _stack(modules: Sequence[nn.Module]) -> nn.Module:
    """A module with the parameters of all, stacked, under the same names; it cannot be called.

    The modules' own parameters become views of it.
    """
    stacked = copy.deepcopy(modules[0])
    own = zip(*(module.parameters() for module in modules), strict=True)
    for parameter, parts in zip(stacked.parameters(), own, strict=True):
        parameter.data = torch.stack([part.detach() for part in parts])
        for part, row in zip(parts, parameter.data, strict=True):
            part.data = row
    return stacked


def _split(record: object, seeds: int) -> dict[str, Any]:
    """The fields of a batch, with the seeds as a first axis of their own."""
    return {
        name: value.reshape(seeds, len(value) // seeds, *value.shape[1:])
        if isinstance(value, Tensor)
        else _split(value, seeds)
        for name, value in vars(record).items()
    }
