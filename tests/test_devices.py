"""Devices: chosen, taken at their word, or refused in words."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from gem_policy.devices import choose_device
from gem_policy.errors import ConfigError


@pytest.mark.parametrize("device", ["meta", None, 3.5])
def test_a_device_that_computes_nothing_is_refused(device: Any) -> None:
    with pytest.raises(ConfigError, match=rf"Device '{device}' cannot be used here"):
        inspect.unwrap(choose_device)(device)


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "nonsense", "mps"])
def test_a_device_that_is_absent_is_said_to_be(device: str) -> None:
    if device.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(ConfigError, match=rf"Device '{device}' cannot be used here.*device='auto'"):
        choose_device(device)


def test_automatic_choice_of_the_device() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected
    assert choose_device(torch.device("cpu")).type == "cpu"
