"""Opening files: inputs checked, outputs that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.signals import Stop

PIPE = Path("-")
"""Standard input or output."""
MAX_LINKS = 40
"""Symbolic links that are followed from one name, as in Linux."""
STEM_BYTES = 230
"""Of an output's name that its temporary file keeps: names have at most 255."""


class OutputFile(io.FileIO):
    """An unbuffered output; that it cannot be written is a `Q2D2Error`, but for a pipe that nobody reads any more.

    Args:
        number: an open descriptor.
        mode: as `open` takes it.
        label: the output's name in "cannot write ...".
    """

    def __init__(self, number: int, mode: str, label: str) -> None:
        super().__init__(number, mode)
        self.label = label

    def write(self, data: Any) -> int:
        """As a file's."""
        with explained(f"cannot write {self.label}"):
            return super().write(data)

    def seekable(self) -> bool:
        """Whether what is written goes to where one has sought: not so in a file that is only appended to."""
        regular = stat.S_ISREG(os.fstat(self.fileno()).st_mode)
        return regular and not fcntl.fcntl(self.fileno(), fcntl.F_GETFL) & os.O_APPEND


class InputFile(io.FileIO):
    """An unbuffered input; that it cannot be read is a `Q2D2Error`.

    Args:
        number: an open descriptor.
        label: the input's name in "cannot read ...".
    """

    def __init__(self, number: int, label: str) -> None:
        super().__init__(number, "rb")
        self.label = label

    def readinto(self, buffer: Any) -> int:
        """As a file's."""
        with explained(f"cannot read {self.label}"):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        """As a file's."""
        with explained(f"cannot read {self.label}"):
            return super().readall()


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an error of the system into a `Q2D2Error` that says what failed; a broken pipe stays one."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = "it is closed" if error.errno == errno.EBADF else error.strerror or error
        raise Q2D2Error(f"{what}: {reason}") from error


@contextlib.contextmanager
def atomic_output(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` and rename it to `path` on success; on any error remove it.

    A symbolic link is followed, and a file that is replaced keeps its permissions. What a killed
    run has left of the same output is removed. `-` and names of open descriptors (`/dev/stdout`),
    devices and named pipes are written to directly.

    Raises:
        UsageError: if the folder cannot be written to, or `path` is one.
        Q2D2Error: if writing fails (a full disk, say).
    """
    if is_direct(path):
        with direct_output(path) as file:
            yield file
        return
    target = Path(os.path.realpath(path)) if os.path.islink(path) else path
    if os.path.isdir(target):
        raise UsageError(f"{path} is a folder: name a file")
    try:
        replaced = target.stat()
    except OSError:
        replaced = None
    # A signal that comes while the file is made waits until it would be removed again.
    with Stop() as stop:
        try:
            number, partial = open_partial(target, 0o666 if replaced is None else 0o600)
        except OSError as error:
            raise UsageError(f"cannot write to folder {target.parent}: {error.strerror}") from error
        output = io.BufferedRandom(OutputFile(number, "w+b", str(path)))
    # Closing the file lets go of its lock: until then nobody else takes the partial file's name.
    with output as file:
        try:
            stop.pass_on()
            yield file
            file.flush()
            with explained(f"cannot write {path}"):
                os.fsync(number)
                if replaced is not None:
                    with contextlib.suppress(OSError):
                        os.fchown(number, replaced.st_uid, replaced.st_gid)
                    os.fchmod(number, stat.S_IMODE(replaced.st_mode) & 0o777)
                os.replace(partial, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise


def open_partial(target: Path, mode: int) -> tuple[int, Path]:
    """Make the temporary file of an output, and lock it for as long as it is open.

    Runs that write the same output at once get files of different numbers. The system lets go of
    the lock of a run that is killed; the next one removes what it left.

    Args:
        target: the output.
        mode: permissions of a new file, less what the process's mask takes away.

    Returns:
        An open descriptor and the temporary file.
    """
    stem = os.fsencode(target.name)[:STEM_BYTES].decode(errors="ignore")
    names = (target.with_name(f".{stem}.{number}.partial") for number in itertools.count())
    for partial in names:
        remove_dead(partial)
        try:
            number = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            continue
        with contextlib.suppress(OSError):  # a file system without locks: then nothing there is taken for dead
            fcntl.flock(number, fcntl.LOCK_EX)
        if os.fstat(number).st_nlink:
            remove_dead(next(names))
            return number, partial
        os.close(number)  # another run took it for dead before it was locked
    raise AssertionError


def remove_dead(partial: Path) -> None:
    """Remove a temporary file that no run holds."""
    try:
        number = os.open(partial, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    with contextlib.suppress(OSError):
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Under this name there may be another file by now.
        if os.path.samestat(os.fstat(number), os.lstat(partial)):
            os.unlink(partial)
    os.close(number)


@contextlib.contextmanager
def direct_output(path: Path) -> Iterator[BinaryIO]:
    """An open descriptor (`-`: standard output), a device or a named pipe."""
    number = descriptor(path, 1)
    label = "to standard output" if number == 1 else f"to {path}"
    with explained(f"cannot write {label}"):
        own = os.open(path, os.O_WRONLY) if number is None else os.dup(number)
    with io.BufferedWriter(OutputFile(own, "wb", label)) as file:
        yield file


def descriptor(path: Path, standard: int) -> int | None:
    """Number of the open descriptor that `path` names; None for any other file.

    Opened by name, a descriptor's file would be one more, with a position of its own.

    Args:
        path: `-`, or one like `/dev/stdout`, `/dev/fd/63` and links to it.
        standard: what `-` stands for: 0 as an input, 1 as an output.
    """
    if path == PIPE:
        return standard
    for _ in range(MAX_LINKS):
        if path.name.isdecimal() and os.path.realpath(path.parent) == os.path.realpath("/proc/self/fd"):
            return int(path.name)
        try:
            path = path.parent / os.readlink(path)
        except OSError:
            break
    return None


def is_direct(path: Path) -> bool:
    """Whether an output is written to as it is: an open descriptor, or a device or pipe that no file may replace."""
    if descriptor(path, 1) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def regular_file(path: Path, standard: int) -> os.stat_result | None:
    """Status of the regular file that `path` stands for as `descriptor` reads it; None if it is none."""
    number = descriptor(path, standard)
    try:
        status = path.stat() if number is None else os.fstat(number)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def is_same_file(source: Path, target: Path) -> bool:
    """Whether an input and an output are one file, under whatever names."""
    read, written = regular_file(source, 0), regular_file(target, 1)
    return read is not None and written is not None and os.path.samestat(read, written)


def check_output(path: Path, force: bool, source: Path | None = None) -> None:
    """Raise UsageError if `path` may not be written.

    Args:
        path: is not to be a folder, nor in one that does not exist.
        force: whether it may exist.
        source: the input, which it is not to be.
    """
    if source is not None and is_same_file(source, path):
        raise UsageError(f"{path} is both input and output: name another output")
    if is_direct(path):
        return
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder: name a file (encode and decode have --out-dir for folders)")
        if path.exists() and not force:
            raise UsageError(f"{path} already exists: use --force to overwrite it")
        parent = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
        if not parent.is_dir():
            raise UsageError(f"folder {parent} does not exist: create it first")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def make_folder(folder: Path) -> None:
    """Make an output folder where there is none.

    Raises:
        UsageError: if it cannot be made, or is there and cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write to folder {folder}: permission denied")


def check_input(path: Path) -> None:
    """Raise UsageError unless `path` is something that can be read as a file."""
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder: name a file (encode and decode take folders with --out-dir)")
        if not path.exists():
            raise UsageError(f"{path} does not exist")
        refuse_device(path)
        if not os.access(path, os.R_OK):
            raise UsageError(f"{path} cannot be read: permission denied")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def refuse_device(path: Path) -> None:
    """Raise UsageError if `path` is a device, which may have no end; one that is open already is asked for."""
    with contextlib.suppress(OSError):
        if descriptor(path, 0) is None and stat.S_ISCHR(path.stat().st_mode):
            raise UsageError(f"{path} is a device, which may have no end: name a file")


def open_binary(path: Path) -> BinaryIO:
    """A file or standard input (`-`) for reading; what fails then is a `Q2D2Error`.

    Raises:
        UsageError: if there is no such file or it is a folder.
    """
    label = "standard input" if path == PIPE else str(path)
    if path != PIPE:
        check_input(path)
    number = descriptor(path, 0)
    with explained(f"cannot read {label}"):
        own = os.open(path, os.O_RDONLY) if number is None else os.dup(number)
        return io.BufferedReader(InputFile(own, label))


def file_stamp(path: Path) -> str:
    """Changes when a file does: its size and when it was written."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"
