"""The hub, with a stand-in for huggingface_hub: nothing here touches a network."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import BOX, sample, tiny_checkpoint

from gem_policy.checkpoint import CONFIG_FILE, WEIGHTS_FILE, save_folder
from gem_policy.errors import CheckpointError, DependencyError
from gem_policy.policy import GEMPolicy


class Hub:
    """What `snapshot_download` was asked for, and what it answers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []  # type: tuple[Path, list[tuple[Any, ...]]]
        self.error: Exception | None = None

    def snapshot_download(self, repository: str, **options: Any) -> str:
        self.asked.append((repository, options))
        if self.error is not None:
            raise self.error
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub(tmp_path / "snapshot")
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = fake.snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    save_folder(tiny_checkpoint(), fake.folder)
    return fake


@pytest.mark.parametrize(
    ("address", "revision"), [("hf://org/repo", None), ("hf://org/repo@v1.0", "v1.0")]
)
def test_a_repository_is_fetched_and_loaded(hub: Hub, address: str, revision: str | None) -> None:
    policy = GEMPolicy.load(address, device="cpu", candidates=3)
    assert policy.selection.candidates == 3
    assert policy.predict(sample(BOX, np.random.default_rng(0)))[0].shape == (2,)
    ((repository, options),) = hub.asked
    assert repository == "org/repo"
    assert options["revision"] == revision


def test_only_weights_description_and_card_are_fetched(hub: Hub) -> None:
    GEMPolicy.load("hf://org/repo", device="cpu")
    ((_, options),) = hub.asked
    assert sorted(options["allow_patterns"]) == ["README.md", CONFIG_FILE, WEIGHTS_FILE]


@pytest.mark.parametrize("address", ["hf://", "hf://repo", "hf://a/b/c", "hf:///b", "hf://a/"])
def test_a_malformed_address_is_refused_before_anything_is_asked(hub: Hub, address: str) -> None:
    with pytest.raises(CheckpointError, match=r"hf://org/repo or hf://org/repo@rev"):
        GEMPolicy.load(address)
    assert hub.asked == []


@pytest.mark.parametrize("error", [OSError("no route"), ValueError("404"), RuntimeError("gated")])
def test_whatever_the_hub_raises_becomes_one_message(hub: Hub, error: Exception) -> None:
    hub.error = error
    with pytest.raises(CheckpointError, match=rf"fetch hf://org/repo: {error}.*by hand") as caught:
        GEMPolicy.load("hf://org/repo")
    assert caught.value.__cause__ is error


def test_a_repository_without_a_policy_is_told(hub: Hub) -> None:
    for file in hub.folder.iterdir():
        file.unlink()
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        GEMPolicy.load("hf://org/repo")


def test_without_the_hubs_package_the_message_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DependencyError, match=r"pip install 'gem-policy\[hub\]'"):
        GEMPolicy.load("hf://org/repo")
