"""What keeps a run whole: one run per folder, and stops only between steps."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from q2d2cli.errors import UsageError

LOCK_NAME = ".lock"
ECHO_SECONDS = 1.0
"""A launcher passes Ctrl-C on to processes that the terminal has told already: within this time it is the same one."""


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


class Stop:
    """Turns SIGINT (Ctrl-C) and SIGTERM into a request that is looked at between steps.

    A second Ctrl-C stops at once. Outside the main thread, where signals do not arrive, it does nothing.

    Attributes:
        signal: the one that came, 0 if none did.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._asked = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: FrameType | None) -> None:
        if self.signal == 0:
            self.signal, self._asked = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._asked > ECHO_SECONDS:
            raise KeyboardInterrupt

    def finish(self) -> None:
        """End as the signal would have ended the command; returns if there was none."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal:
            raise SystemExit(128 + self.signal)
