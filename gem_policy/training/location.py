"""Where a dataset lies, and what it says about itself."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from gem_policy.env_specs import read_spec
from gem_policy.errors import DatasetError, SpaceError
from gem_policy.training.minari_root import datasets_in, datasets_root, describe_namespaces


@dataclass(frozen=True)
class Source:
    """A dataset's description, read without its data.

    Attributes:
        id: Minari's id.
        folder: Where its data and metadata lie.
        file_format: `hdf5`, `arrow` or `parquet`.
        total_episodes: As the metadata says.
        total_steps: As the metadata says.
        observation_space: Of the environment.
        action_space: Of the environment; any space, `dataset.load` accepts only a bounded Box.
        metadata: All of it, without the spaces; reference scores are floats, where there are any.
    """

    id: str
    folder: Path
    file_format: str
    total_episodes: int
    total_steps: int
    observation_space: gym.Space[Any]
    action_space: Any
    metadata: Mapping[str, Any]


def open_source(folder: Path) -> Source:
    """Read what a dataset says about itself.

    Args:
        folder: As `locate` returns it.

    Raises:
        DatasetError: if the metadata is damaged or of a version that Minari does not support; the
            message names the field, where one is to blame.
    """
    import minari

    try:
        opened = minari.MinariDataset(folder)
        metadata = dict(opened.storage.metadata)
        for name in ("ref_min_score", "ref_max_score"):
            if metadata.get(name) is not None:
                metadata[name] = _number(metadata, name, float)
        return Source(
            id=opened.id,
            folder=folder,
            file_format=str(metadata["data_format"]),
            total_episodes=_count(metadata, "total_episodes"),
            total_steps=_count(metadata, "total_steps"),
            observation_space=metadata.pop("observation_space"),
            action_space=metadata.pop("action_space"),
            metadata={k: sorted(v) if isinstance(v, set) else v for k, v in metadata.items()},
        )
    except (
        ValueError,
        KeyError,
        AssertionError,
        OSError,
        TypeError,
        AttributeError,
        gym.error.Error,
    ) as error:
        raise DatasetError(
            f"The dataset in {folder} cannot be opened ({_damaged_spec(folder)}"
            f"{type(error).__name__}: {error}). "
            "Delete that folder and download or make it again, or upgrade Minari if a newer one "
            "wrote it."
        ) from error


def _count(metadata: Mapping[str, Any], name: str) -> int:
    count = int(_number(metadata, name, int))
    if count < 0:
        raise ValueError(f"{name} is {count}, expected a count")
    return count


def _number(metadata: Mapping[str, Any], name: str, kind: Callable[[Any], float]) -> float:
    """An entry of the metadata as a number; of anything else a ValueError with the entry's name."""
    try:
        return kind(metadata[name])
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} is {metadata[name]!r}, expected a number") from error


def _damaged_spec(folder: Path) -> str:
    """Which description of an environment Minari cannot read, as the start of a message."""
    with contextlib.suppress(ValueError, OSError, AttributeError):  # then the file is to blame
        stored = json.loads((folder / "metadata.json").read_text())
        for name in ("env_spec", "eval_env_spec"):
            if stored.get(name) is not None and not _is_spec(stored[name]):
                return f"its {name} describes no environment; "
    return ""


def _is_spec(text: object) -> bool:
    try:
        read_spec(text)
    except SpaceError:
        return False
    # Ours goes without the wrappers, Minari's does not; nor does it take anything but text.
    return isinstance(text, str) and "additional_wrappers" in json.loads(text)


def locate(dataset: str | Path, *, download: bool = False) -> Path:
    """The folder that holds a dataset's `metadata.json`.

    Args:
        dataset: As for `gem_policy.training.dataset.load`.
        download: Whether a dataset that is not on this machine may be fetched.

    Raises:
        DatasetError: if it is not there; the message says how to get it.
        DependencyError: if Minari is missing.
    """
    root = datasets_root()
    name = str(dataset)
    local_id = name.partition("://")[2].partition("/")[2] if "://" in name else name
    if "://" in name and not local_id:
        raise DatasetError(
            f"`{name}` names no dataset; expected `hf://organization/name-v0` or the like."
        )
    for folder in (root / local_id / "data", Path(name).expanduser()):
        for candidate in (folder, folder / "data"):
            if (candidate / "metadata.json").is_file():
                return candidate
    if download:
        if (root / local_id).exists():  # an unfinished download, which would stay in the way
            raise DatasetError(
                f"{root / local_id} is there, but no dataset is in it. Delete it, and download "
                "again."
            )
        _download(name, local_id, root)
        return root / local_id / "data"
    raise DatasetError(_not_found(name, local_id, root))


def local_ids() -> tuple[str, ...]:
    """Ids of all datasets on this machine."""
    root = datasets_root()
    found = []
    for folder, inner, _ in os.walk(root):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if "data" in inner and (Path(folder) / "data" / "metadata.json").is_file():
            found.append(Path(folder).relative_to(root).as_posix())
            inner.clear()
    return tuple(found)


def _download(name: str, local_id: str, root: Path) -> None:
    import minari

    stage = root / f".download-{local_id.replace('/', '_')}"
    # Minari takes a folder that exists for a finished download.
    shutil.rmtree(stage, ignore_errors=True)
    # It looks for the namespace on its own hub even when the dataset is on another.
    describe_namespaces(local_id, stage)
    try:
        # Minari reports on standard output, which may be somebody's JSON.
        with datasets_in(stage), contextlib.redirect_stdout(sys.stderr):
            minari.download_dataset(name)
    except ImportError as error:
        raise DatasetError(
            f"Downloading `{name}` needs another package ({error}): "
            "pip install 'gem-policy[train,hub]'."
        ) from error
    except Exception as error:  # whatever a network can do
        raise DatasetError(
            f"`{name}` could not be downloaded ({type(error).__name__}: {error}). Check the name "
            "with `minari list remote` and the connection; MINARI_REMOTE names the remote."
        ) from error
    for found in sorted(stage.rglob("metadata.json")):
        if found.parent.name == "data":
            target = root / found.parent.parent.relative_to(stage)
            describe_namespaces(target.relative_to(root).as_posix(), root)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                found.parent.parent.rename(target)
    shutil.rmtree(stage, ignore_errors=True)


def _not_found(name: str, local_id: str, root: Path) -> str:
    from gem_policy.training import recipes

    here = local_ids()
    message = f"No dataset `{name}` in {root} (MINARI_DATASETS_PATH decides where that is)."
    if local_id in recipes.names():
        return f"{message} Make it: `gem-policy datasets make {local_id}`."
    known = {known.lower(): known for known in (*here, *recipes.names())}
    close = difflib.get_close_matches(local_id.lower(), known, n=1, cutoff=0.7)
    if close:
        message += f" Did you mean `{known[close[0]]}`?"
    return (
        f"{message} Download it with --download, or name a folder that holds "
        f"data/metadata.json. Datasets here: {', '.join(here[:10]) or 'none'}."
    )
