"""Code that `torch.compile` makes of decisions and updates: fewer and larger pieces of work.

Most of the time of one decision goes into calling some hundred operations on small tensors, on a
CPU and on a GPU; much of that of many decisions into passes over memory between the products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from gem_policy import candidates
from gem_policy.errors import ConfigError

T = TypeVar("T")

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def compile_strictly(work: Callable[..., T], **options: Any) -> Callable[..., T]:
    """`torch.compile` for fixed shapes, which says what to do where it cannot.

    Raises:
        ConfigError: Torch cannot compile here; told now, or when the function is called.
    """

    def own(*arguments: Any) -> T:
        return work(*arguments)

    # Torch keeps a few compilations of each code object, and does without from there on.
    own.__code__ = own.__code__.replace()
    try:
        made: Callable[..., T] = torch.compile(own, dynamic=False, **options)
    except RuntimeError as error:  # this Python, or this system, is none that torch compiles for
        raise _refusal(error) from error

    def call(*arguments: Any) -> T:
        from torch._dynamo.exc import TorchDynamoException

        try:
            return made(*arguments)
        except TorchDynamoException as error:
            raise _refusal(error) from error

    return call


def _refusal(error: Exception) -> ConfigError:
    reason = " ".join(str(error).split("\n")[:2])  # torch's goes on for a screen
    return ConfigError(
        f"torch.compile failed ({reason}). It needs a C++ compiler on a CPU and Triton on a GPU. "
        "Install that, or leave out `compiled`."
    )


class Compiled(Generic[T]):
    """A deterministic decision, compiled for every shape and settings that it meets.

    Up to torch's limit, eight unless it is told otherwise; what it meets beyond runs as it would
    without this.

    Args:
        decide: What to compile: from observations and settings. It neither enters nor leaves
            inference mode, whose tensors are nothing for the compiler.
        **options: Of `torch.compile`.
    """

    def __init__(self, decide: Callable[[Tensor, Any], T], **options: Any) -> None:
        # The draws are the same for all states: looked up once, and part of the code.
        # By its module's name: torch 2.4 puts what it found in the place of one of this module.
        torch.compiler.assume_constant_result(candidates.noise_table)  # type: ignore[no-untyped-call]
        self._decide = compile_strictly(decide, **options)

    def __call__(self, observations: Float[Tensor, "*batch obs"], settings: Any) -> T:
        """The decision, to rounding.

        Raises:
            ConfigError: Torch cannot compile here.
        """
        with torch.inference_mode(False), torch.no_grad():
            given = observations.clone() if observations.is_inference() else observations
            return self._decide(given, settings)
