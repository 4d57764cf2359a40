"""What a policy is loaded by: found, or refused with what comes closest."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from gem_policy.errors import CheckpointError, GEMWarning
from gem_policy.names import resolve
from gem_policy.policy import GEMPolicy


def test_an_unknown_name_gets_the_closest_one(shipped: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Did you mean 'maze-large'\? Shipped are \['maze-l"):
        GEMPolicy.load("maze-larg")
    with pytest.raises(CheckpointError, match=r"no shipped policy 'zzz'.*folder. Shipped are"):
        GEMPolicy.load("zzz")


@pytest.mark.parametrize("path", ["some/where", "none.safetensors", "back\\slash"])
def test_a_path_with_nothing_there_is_named(path: str) -> None:
    with pytest.raises(CheckpointError, match="There is no file or folder.*hf://org/repo"):
        GEMPolicy.load(path)


@pytest.mark.parametrize("source", [None, 123, b"pointmaze-umaze", ""])
def test_what_is_no_name_and_no_path_is_refused(source: Any) -> None:
    with pytest.raises(CheckpointError, match="loaded by a name or a path, got"):
        inspect.unwrap(resolve)(source)


@pytest.mark.parametrize("source", ["x" * 300, "x\x00y"])
def test_a_name_that_no_file_can_have_is_nothing(source: str) -> None:
    with pytest.raises(CheckpointError, match="There is no"):
        GEMPolicy.load(source)


def test_a_folder_of_a_shipped_name_is_not_taken_in_silence(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shipped)  # the shipped one itself lies here
    assert resolve("maze-small") == shipped / "maze-small"
    (tmp_path / "mine" / "maze-small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mine")
    with pytest.warns(GEMWarning, match="write './maze-small'"):
        assert resolve("maze-small") == shipped / "maze-small"
    assert resolve("./maze-small") == Path("./maze-small")
