"""What goes into the wheel and the sdist: everything that must, nothing else.

Both are built in isolation from a copy of the checkout, unless GEM_POLICY_DIST names a folder
that holds them already.
"""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from layout import FOLDERS, ROOT, module_files, packages_on_disk

pytestmark = pytest.mark.slow

LARGEST_WHEEL = 90_000_000  # bytes; package indexes refuse 100 MB
POLICY_FILES = ["model.safetensors", "README.md", "evaluation.json"]
LEFT_OUT = ["*.egg-info", ".*", "__pycache__", "build", "data", "dist", "runs"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "GEM_POLICY_DIST" in os.environ:
        return Path(os.environ["GEM_POLICY_DIST"])
    folder = tmp_path_factory.mktemp("packaging")
    # A copy: an earlier install leaves a list of sources beside them, and old files stay on it.
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*LEFT_OUT))
    command = [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), "source"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (file,) = dist.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def sdist(dist: Path) -> Path:
    (file,) = dist.glob("*.tar.gz")
    return file


def expected_files() -> set[str]:
    """Paths in the wheel of every module and every file of data."""
    found = {"gem_policy/py.typed"}
    for package, folder in FOLDERS.items():
        files = [*folder.rglob("*.py")]
        if package == "gem_policy.pretrained":
            files += [file for name in POLICY_FILES for file in folder.glob(f"*/{name}")]
            files += folder.glob("*.json")
        prefix = package.replace(".", "/")
        found |= {f"{prefix}/{file.relative_to(folder).as_posix()}" for file in files}
    return found


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == expected_files()
    assert {name.partition(".dist-info/")[2] for name in info} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "licenses/NOTICE",
        "top_level.txt",
    }
    packages = {name.rpartition("/")[0].replace("/", ".") for name in names if name[-3:] == ".py"}
    assert packages == packages_on_disk()


def test_every_policy_ships_with_its_card():
    for file in FOLDERS["gem_policy.pretrained"].glob("*/model.safetensors"):
        assert (file.parent / "README.md").is_file()


def test_wheel_is_small_enough(wheel):
    assert wheel.stat().st_size <= LARGEST_WHEEL


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    import gem_policy

    assert metadata["Name"] == "gem-policy"
    assert metadata["Version"] == gem_policy.__version__
    assert metadata["License-Expression"] == "MIT"
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    for extra in ("stable", "minari", "mujoco", "robotics", "huggingface"):
        assert not any(extra in line for line in required)


def test_sdist_holds_what_the_tests_need_and_no_leftovers(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {file.relative_to(ROOT).as_posix() for file in module_files().values()}
    tests = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "tests").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    pages = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"}
    tools = {"Makefile", "constraints.txt", "pyproject.toml"}
    assert sources | tests | pages | tools <= names
    assert not [n for n in names if n.endswith((".pyc", ".pt", ".zip", ".hdf5"))]
    assert not [n for n in names if n.split("/")[0] in ("data", "runs", "build", ".venv")]
