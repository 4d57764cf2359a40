"""A decision as code that `torch.compile` makes of it: fewer and larger pieces of work.

Most of the time of one decision goes into calling some hundred operations on small tensors, on a
CPU and on a GPU; much of that of many decisions into passes over memory between the products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy.candidates import noise_table
from gem_policy.errors import ConfigError

T = TypeVar("T")


class Compiled(Generic[T]):
    """A deterministic decision, compiled for every shape and settings that it meets.

    Torch compiles up to a limit of its own, eight unless told otherwise; what it meets beyond runs
    as it would without this.

    Args:
        decide: What to compile; it neither enters nor leaves inference mode, whose tensors are
            nothing for the compiler.
        **options: Of `torch.compile`.
    """

    def __init__(self, decide: Callable[[Tensor], T], **options: Any) -> None:
        # The draws are the same for all states: looked up once, and part of the code.
        torch.compiler.assume_constant_result(noise_table)  # type: ignore[no-untyped-call]
        self._decide: Callable[[Tensor], T] = torch.compile(decide, dynamic=False, **options)

    def __call__(self, observations: Float[Tensor, "*batch obs"]) -> T:
        """The decision, to rounding.

        Raises:
            ConfigError: Torch cannot compile here.
        """
        from torch._dynamo.exc import TorchDynamoException

        with torch.inference_mode(False), torch.no_grad():
            given = observations.clone() if observations.is_inference() else observations
            try:
                return self._decide(given)
            except TorchDynamoException as error:
                reason = " ".join(str(error).split("\n")[:2])  # torch's goes on for a screen
                raise ConfigError(
                    f"torch.compile failed ({reason}). It needs a C++ compiler on a CPU and Triton "
                    "on a GPU. Install that, or leave out `compiled`."
                ) from error
