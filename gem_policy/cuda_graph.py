"""Work on a CUDA device, recorded once and launched as one graph.

Networks as small as these are some hundred kernels of a microsecond or two, and a GPU waits for the
CPU to launch each of them. A graph is launched as one. It reads and writes the same memory every
time it runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

WARM_UP = 3  # runs before the recording, which torch needs to make its workspaces
KEPT = 16  # recordings of a policy, for as many pairs of batch size and settings

T = TypeVar("T")
Again = Callable[[], None]


def is_current_cuda(device: torch.device) -> bool:
    """Whether graphs can be recorded there: torch captures what happens on the current device."""
    return device.type == "cuda" and device.index in (None, torch.cuda.current_device())


def warm_up(work: Callable[[], object], device: torch.device) -> None:
    """Run it on a stream of its own, as torch's notes on CUDA graphs ask for."""
    if device.type != "cuda":
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream(device).wait_stream(stream)


def record_cuda_graph(work: Callable[[], T]) -> tuple[Again, T]:
    """Capture the kernels of ``work``; they are not run yet.

    Returns:
        What launches them, and what ``work`` returned: its tensors hold the results afterwards.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()
    return graph.replay, result


class RecordedAct:
    """A deterministic decision, recorded for every batch size and settings that it meets.

    Args:
        act: From observations to actions on the device, by kernels that depend on nothing else but
            on the settings, and never wait for the device.
        device: Where.
        record: Records a piece of work.
    """

    def __init__(
        self,
        act: Callable[[Tensor], Tensor],
        device: torch.device,
        record: Callable[[Callable[[], Tensor]], tuple[Again, Tensor]] = record_cuda_graph,
    ) -> None:
        self._act, self._device, self._record = act, device, record
        self._recorded: OrderedDict[Hashable, tuple[Tensor, Again, Tensor]] = OrderedDict()

    def __call__(
        self, rows: Float[Tensor, "batch obs"], settings: Hashable
    ) -> Float[Tensor, "batch action"]:
        """Actions on the CPU for observations on the CPU, under settings that `act` obeys now."""
        key = (len(rows), settings)
        if key not in self._recorded:
            self._recorded[key] = self._recording(rows)
            if len(self._recorded) > KEPT:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        given, again, found = self._recorded[key]
        given.copy_(rows)
        again()
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return found.clone()

    def _recording(self, rows: Tensor) -> tuple[Tensor, Again, Tensor]:
        """Where observations go, what decides, and where the actions are afterwards."""
        cuda = self._device.type == "cuda"
        # Page-locked, so that the copies to the device and back are part of the graph.
        given = torch.empty_like(rows, pin_memory=cuda).copy_(rows)
        example = self._act(rows.to(self._device))
        out = torch.empty(example.shape, dtype=example.dtype, pin_memory=cuda)

        def work() -> Tensor:
            on_device = given.to(self._device, non_blocking=True)
            return out.copy_(self._act(on_device), non_blocking=True)

        warm_up(work, self._device)
        again, found = self._record(work)
        return given, again, found
