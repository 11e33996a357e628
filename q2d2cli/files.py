"""Opening files: inputs checked, outputs that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from q2d2cli.errors import Q2D2Error, UsageError

PIPE = Path("-")
"""Standard input or output."""


@contextlib.contextmanager
def atomic_output(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` and rename it to `path` on success; on any error remove it.

    `-` is standard output, and a device or named pipe is written to directly.

    Raises:
        UsageError: if the folder cannot be written to.
        Q2D2Error: if writing fails (a full disk, say).
    """
    if path == PIPE or is_special(path):
        with direct_output(path) as file:
            yield file
        return
    folder = path.parent
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=folder)
    except OSError as error:
        raise UsageError(f"cannot write to folder {folder}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~current_umask())
        os.replace(name, path)
    except OSError as error:
        raise Q2D2Error(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)


@contextlib.contextmanager
def direct_output(path: Path) -> Iterator[BinaryIO]:
    """Standard output (`-`), a device or a named pipe."""
    name = "standard output" if path == PIPE else str(path)
    try:
        with os.fdopen(os.dup(sys.stdout.fileno()), "wb") if path == PIPE else path.open("wb") as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Q2D2Error(f"cannot write to {name}: {error.strerror or error}") from error


def is_special(path: Path) -> bool:
    """Whether `path` exists and is a device or pipe, which must not be replaced by a file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def check_output(path: Path, force: bool) -> None:
    """Raise UsageError if `path` may not be written: it exists and `force` is false, is a folder, or has none."""
    if path == PIPE or is_special(path):
        return
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file")
    if path.exists() and not force:
        raise UsageError(f"{path} already exists: use --force to overwrite it")
    if not path.parent.is_dir():
        raise UsageError(f"folder {path.parent} does not exist: create it first")


def make_folder(folder: Path) -> None:
    """Make an output folder where there is none.

    Raises:
        UsageError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make folder {folder}: {error.strerror}") from error


def current_umask() -> int:
    """The process's file mode mask (only readable by setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_input(path: Path) -> None:
    """Raise UsageError unless `path` is something that can be read as a file."""
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder: name a file, or use --out-dir to convert all in it")
        if not path.exists():
            raise UsageError(f"{path} does not exist")
        if not os.access(path, os.R_OK):
            raise UsageError(f"{path} cannot be read: permission denied")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def open_binary(path: Path) -> BinaryIO:
    """A file or standard input (`-`) for reading.

    Raises:
        UsageError: if there is no such file or it is a folder.
    """
    if path == PIPE:
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    check_input(path)
    return path.open("rb")
