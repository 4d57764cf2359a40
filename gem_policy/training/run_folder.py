"""The folder of a run: one process at a time works in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from gem_policy.errors import CheckpointError, TrainingError

LOCK_FILE = ".at_work"


def make_folder(folder: Path) -> None:
    """Make the folder of a run, unless it is there.

    Raises:
        CheckpointError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be the folder of a run ({error.strerror}). Give another --out."
        ) from error


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder, until the end of this one or of its process.

    Raises:
        CheckpointError: The folder cannot be made, or not be written to.
        TrainingError: Another run is at work in it.
    """
    make_folder(folder)
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except Timeout as error:
            raise TrainingError(
                f"Another run is at work in {folder}. Give another --out, or wait for its end."
            ) from error
        except NotImplementedError:
            pass  # a file system without locks
        except OSError as error:
            raise CheckpointError(
                f"{folder} cannot be written to ({error.strerror}). Give another --out."
            ) from error
        yield
