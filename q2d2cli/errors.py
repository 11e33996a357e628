"""Errors whose message is meant for the user: one line that says what is wrong and what to do."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator


class Q2D2Error(Exception):
    """Data or a run failed; the command line prints the message and exits with 1."""

    exit_code = 1


class UsageError(Q2D2Error):
    """The command was asked for something that cannot be done; exits with 2."""

    exit_code = 2


_terminal = threading.RLock()
"""Held while a line is printed, or while standard error is muted."""


def report(message: object) -> None:
    """Print one line for the user on standard error."""
    say(f"q2d2: {' '.join(str(message).split())}")


def say(line: str) -> None:
    """Print a line as it is on standard error."""
    with _terminal:
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Nothing that a C library writes to standard error comes out meanwhile; `report` and `say` wait."""
    with _terminal, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            saved = os.dup(2)
            stack.callback(os.close, saved)
            null = os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, null)
            os.dup2(null, 2)
            stack.callback(os.dup2, saved, 2)
        yield
