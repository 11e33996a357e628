"""Signals that ask for an end: what is at work finishes first."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

ECHO_SECONDS = 1.0
"""A launcher passes Ctrl-C on to processes that the terminal has told already: within this time it is the same one."""


class Stop:
    """Turns SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal was closed) into a request that is looked at in time.

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
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
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

    def pass_on(self) -> None:
        """Let the signal do what it would have done without this; returns if there was none, or it does nothing."""
        if self.signal:
            signal.raise_signal(self.signal)

    def finish(self) -> None:
        """End as the signal would have ended the command; returns if there was none."""
        end_by(self.signal)


def end_by(number: int) -> None:
    """End the command as this signal does; returns if it is 0."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number:
        raise SystemExit(128 + number)
