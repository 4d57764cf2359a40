"""Where Minari datasets lie on this machine, and how one gets there all at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gem_policy.errors import DatasetError, DependencyError

_environment = threading.Lock()


def datasets_root() -> Path:
    """The folder of all datasets: `MINARI_DATASETS_PATH`, or Minari's default.

    Raises:
        DependencyError: if Minari is not installed.
        DatasetError: if the folder is not there and cannot be made.
    """
    try:
        from minari.storage import get_dataset_path
    except ImportError as error:
        raise DependencyError(
            "Datasets are read and written with Minari: pip install 'gem-policy[train]'."
        ) from error
    try:
        return Path(get_dataset_path(""))
    except OSError as error:
        raise DatasetError(
            f"The folder of all datasets cannot be made ({error}). Set MINARI_DATASETS_PATH to a "
            "folder that can be written."
        ) from error


@contextmanager
def datasets_in(folder: Path) -> Iterator[None]:
    """Let Minari write into `folder`, which is made, for the length of the block.

    Minari takes the place from the environment of the process, so one block runs at a time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _environment:
        before = os.environ.get("MINARI_DATASETS_PATH")
        os.environ["MINARI_DATASETS_PATH"] = str(folder)
        try:
            yield
        finally:
            if before is None:
                del os.environ["MINARI_DATASETS_PATH"]
            else:
                os.environ["MINARI_DATASETS_PATH"] = before


def describe_namespaces(dataset_id: str, root: Path) -> None:
    """Give every namespace of a dataset the file by which Minari knows it."""
    parts = dataset_id.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        path = root.joinpath(*parts[:depth]) / "namespace_metadata.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
