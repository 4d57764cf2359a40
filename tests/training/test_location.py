from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_datasets import data_folder, edit_metadata, random_episodes, write_dataset

from gem_policy.errors import DatasetError
from gem_policy.training.dataset import load
from gem_policy.training.doctor import examine
from gem_policy.training.location import local_ids

pytestmark = pytest.mark.usefixtures("root")


def test_a_path_does_as_well_as_an_id(root: Path) -> None:
    write_dataset("test/any-v0", random_episodes(2))
    by_id = load("test/any-v0")
    for path in (root / "test/any-v0", str(root / "test/any-v0" / "data")):
        assert torch.equal(load(path).transitions.observations, by_id.transitions.observations)


def test_metadata_of_an_unknown_version_is_refused(root: Path) -> None:
    write_dataset("test/bad-v0", random_episodes(2))
    edit_metadata(root, "test/bad-v0", minari_version="99.0.0")
    with pytest.raises(DatasetError, match="upgrade Minari"):
        load("test/bad-v0")


NO_ID = json.dumps({"id": "two words", "entry_point": None, "additional_wrappers": []})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ref_min_score", "low", "ref_min_score is 'low', expected a number"),
        ("ref_max_score", [1.0], r"ref_max_score is \[1.0\], expected a number"),
        ("total_steps", -1, "total_steps is -1, expected a count"),
        ("total_steps", float("inf"), "total_steps is inf, expected a number"),
        ("total_episodes", -2, "total_episodes is -2, expected a count"),
        ("env_spec", '{"id": 3}', "its env_spec describes no environment"),
        ("env_spec", {"id": "Pendulum-v1"}, "its env_spec describes no environment"),
        ("env_spec", "3", "its env_spec describes no environment"),
        ("eval_env_spec", NO_ID, "its eval_env_spec describes no environment"),
    ],
)
def test_a_damaged_field_of_the_metadata_is_named(
    root: Path, name: str, value: object, message: str
) -> None:
    write_dataset("test/bad-v0", random_episodes(2))
    edit_metadata(root, "test/bad-v0", **{name: value})
    with pytest.raises(DatasetError, match=f"cannot be opened.*{message}.*make it again"):
        load("test/bad-v0")
    assert examine("test/bad-v0").codes() == ("unreadable",)


def test_a_description_of_an_old_environment_is_not_blamed_for_other_damage(root: Path) -> None:
    write_dataset("test/bad-v0", random_episodes(2), env="Pendulum-v1")
    path = data_folder(root, "test/bad-v0") / "metadata.json"
    old = {**json.loads(json.loads(path.read_text())["env_spec"]), "autoreset": False}
    edit_metadata(root, "test/bad-v0", env_spec=json.dumps(old), minari_version="99.0.0")
    with pytest.raises(DatasetError, match="upgrade Minari") as caught:
        load("test/bad-v0")
    assert "env_spec" not in str(caught.value)


def test_reference_scores_are_floats(root: Path) -> None:
    write_dataset("test/any-v0", random_episodes(2))
    edit_metadata(root, "test/any-v0", ref_min_score=1, ref_max_score="2.5")
    data = load("test/any-v0")
    assert (data.ref_min, data.ref_max) == (1.0, 2.5)
    examine("test/any-v0", simulate=False)


def test_a_dataset_that_is_not_there_says_how_to_get_it(root: Path) -> None:
    write_dataset("test/here-v0", random_episodes(2))
    with pytest.raises(DatasetError, match="Did you mean `test/here-v0`.*--download") as caught:
        load("test/hare-v0")
    assert "MINARI_DATASETS_PATH" in str(caught.value) and str(root) in str(caught.value)
    with pytest.raises(DatasetError, match="datasets make gem/pointmaze/large-v0"):
        load("gem/pointmaze/large-v0")
    with pytest.raises(DatasetError, match="names no dataset"):
        load("hf://somebody")


def test_local_ids_lists_what_is_there(root: Path) -> None:
    write_dataset("test/b-v0", random_episodes(2))
    write_dataset("a-v1", random_episodes(2))
    (root / ".half" / "data").mkdir(parents=True)
    assert local_ids() == ("a-v1", "test/b-v0")


class FolderRemote:
    """A remote that serves the datasets of a folder, in the place of a hub."""

    folder: Path
    fails = False

    def __init__(self, name: str, token: str | None = None) -> None:
        self.name = name

    def list_datasets(self, prefix: str | None = None) -> list[str]:
        found = [
            path.parents[1].relative_to(self.folder).as_posix()
            for path in self.folder.rglob("data/metadata.json")
        ]
        return [name for name in found if name.startswith(prefix or "")]

    def get_dataset_metadata(self, dataset_id: str) -> Any:
        return json.loads((data_folder(self.folder, dataset_id) / "metadata.json").read_text())

    def download_dataset(self, dataset_id: str, path: Path) -> None:
        target = path / dataset_id
        if self.fails:
            (target / "data").mkdir(parents=True)
            raise ConnectionError("the line went dead")
        shutil.copytree(self.folder / dataset_id, target)


@pytest.fixture
def remote(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> type[FolderRemote]:
    from minari.storage import remotes

    class Remote(FolderRemote):
        folder = tmp_path_factory.mktemp("remote")

    monkeypatch.setitem(remotes._registry, "hf", lambda: Remote)
    write_dataset("test/far-v0", random_episodes(2))
    shutil.move(root / "test", Remote.folder / "test")
    return Remote


@pytest.mark.parametrize("name", ["test/far-v0", "hf://somebody/test/far-v0"])
def test_nothing_is_downloaded_unless_asked(
    remote: type[FolderRemote], root: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DatasetError, match="--download"):
        load(name)
    data = load(name, download=True)
    assert data.id == "test/far-v0" and data_folder(root, "test/far-v0").is_dir()
    assert capsys.readouterr().out == ""  # standard output stays clean
    shutil.rmtree(remote.folder)
    assert load(name).id == "test/far-v0"  # now it is here


def test_a_download_that_breaks_leaves_no_half_dataset(
    remote: type[FolderRemote], root: Path
) -> None:
    remote.fails = True
    with pytest.raises(DatasetError, match="could not be downloaded.*the line went dead"):
        load("test/far-v0", download=True)
    assert not (root / "test").exists()
    remote.fails = False
    assert load("test/far-v0", download=True).id == "test/far-v0"


def test_what_is_left_of_a_download_is_named(remote: type[FolderRemote], root: Path) -> None:
    (root / "test" / "far-v0").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"far-v0 is there, but no dataset is in it. Delete it"):
        load("test/far-v0", download=True)
    (root / "test" / "far-v0").rmdir()
    load("test/far-v0", download=True)
    next(data_folder(root, "test/far-v0").glob("*.hdf5")).unlink()
    with pytest.raises(DatasetError, match="Delete that folder and download"):
        load("test/far-v0", download=True)


def test_a_folder_of_datasets_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file" / "datasets"))
    with pytest.raises(DatasetError, match="cannot be made.*Set MINARI_DATASETS_PATH"):
        local_ids()
