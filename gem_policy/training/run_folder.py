"""The folder of a run: one process at a time works in it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from gem_policy.checkpoint import WEIGHTS_FILE, remove_unfinished
from gem_policy.errors import CheckpointError, TrainingError
from gem_policy.training.state import STATE_FILE

LOCK_FILE = ".at_work"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # on this file system


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder, until the end of this one or of its process.

    What a run that was killed while it wrote its state or its policy left there is removed.

    Raises:
        CheckpointError: The folder cannot be made, or not be written to.
        TrainingError: Another run is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be the folder of a run ({error.strerror}). Give another --out."
        ) from error
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except Timeout as error:
            raise TrainingError(
                f"Another run is at work in {folder}. Give another --out, or wait for its end."
            ) from error
        except NotImplementedError:  # what older versions of filelock say of such file systems
            pass
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise CheckpointError(
                    f"{folder} cannot be written to ({error.strerror}). Give another --out."
                ) from error
        else:
            for file in (STATE_FILE, WEIGHTS_FILE):
                remove_unfinished(folder / file)
        yield
