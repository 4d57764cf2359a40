"""What every test gets: no chance, no network, one thread, and a data folder of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

# `ci`, the default, tries the same examples in every run; HYPOTHESIS_PROFILE=dev looks for new
# ones. No deadline in either: the first call of anything in torch is slow.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60, database=None)
settings.register_profile("dev", deadline=None, max_examples=300)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# The nets of the tests are tiny: more threads cost time, and change the order of sums.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Connections that leave the machine fail; pipes and local sockets work."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        inside = self.family not in (socket.AF_INET, socket.AF_INET6)
        if inside or address[0] in ("127.0.0.1", "::1", "localhost"):
            return connect(self, address)
        raise OSError(f"a test tried to connect to {address!r}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        patch.setattr(socket.socket, "connect_ex", guarded)
        yield


@pytest.fixture(autouse=True, scope="session")
def datasets_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Minari reads and writes in a temporary folder, never among the user's own datasets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of datasets for one test alone, where Minari reads and writes."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shipped policies, as if this were the wheel: the folder that they lie in."""
    from fakes import tiny_checkpoint

    from gem_policy import pretrained
    from gem_policy.checkpoint import save_folder

    for seed, name in enumerate(("maze-small", "maze-large")):
        save_folder(tiny_checkpoint(seed=seed), tmp_path / name)
    monkeypatch.setattr(pretrained, "names", lambda: ("maze-large", "maze-small"))
    monkeypatch.setattr(pretrained, "path", lambda name: tmp_path / name)
    return tmp_path
