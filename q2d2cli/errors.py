"""Errors whose message is meant for the user: one line that says what is wrong and what to do."""

from __future__ import annotations

import sys


class Q2D2Error(Exception):
    """Data or a run failed; the command line prints the message and exits with 1."""

    exit_code = 1


class UsageError(Q2D2Error):
    """The command was asked for something that cannot be done; exits with 2."""

    exit_code = 2


def report(message: object) -> None:
    """Print one line for the user on standard error."""
    print(f"q2d2: {' '.join(str(message).split())}", file=sys.stderr)
