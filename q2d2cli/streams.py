"""The command's standard input, output and error: safe where they are closed, full or their reader is gone."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from q2d2cli.errors import Q2D2Error, report
from q2d2cli.files import OutputFile


class Messages(io.FileIO):
    """Standard error: what it cannot take is lost, as there is nowhere else to say so."""

    def write(self, data: Any) -> int:
        """As a file's, without errors."""
        with contextlib.suppress(OSError):
            return super().write(data)
        return len(data)


def open_standard_streams() -> None:
    """Make what is printed fail in one line, and closed streams safe; to be called before anything opens a file.

    The system gives the number of a closed stream to the next file, which would then get what is
    meant for the stream. A closed one becomes the null device opened the wrong way round (standard
    error: the right way), so that using it fails.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = as_text(OutputFile(os.dup(1), "wb", "to standard output"), sys.stdout)
    sys.stderr = as_text(Messages(2, "wb", closefd=False), sys.stderr)


def as_text(raw: io.FileIO, before: Any) -> io.TextIOWrapper:
    """A stream of lines, in the encoding of the one it replaces; what that does not have is escaped."""
    encoding = getattr(before, "encoding", None) or "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=raw.isatty())


def close_output(code: int) -> int:
    """Write what is left of standard output; returns the exit code, which is another if that failed."""
    try:
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader went away (`| head`): nothing to say
        failed = 1
    except Q2D2Error as error:
        failed = error.exit_code
        if not code:
            report(error)
    # Python would try again at its end, and say so.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code or failed
