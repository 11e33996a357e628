"""One training run per folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from q2d2cli.errors import UsageError

LOCK_NAME = ".lock"


@contextlib.contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold a folder for one run; the system lets go of it however the process ends.

    Raises:
        UsageError: if another run holds it, or nothing can be written there.
    """
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UsageError(
            f"another run is at work in {folder}: wait until it ends or stop it, or name another folder"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot write to folder {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
