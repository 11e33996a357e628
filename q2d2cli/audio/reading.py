"""Reading audio: files and pipes, block by block or whole."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from q2d2cli.audio.resampling import Resampler
from q2d2cli.errors import Q2D2Error
from q2d2cli.files import PIPE, check_input

MAX_CHANNELS = 64


class AudioReader:
    """An audio file, or standard input, read in blocks.

    Args:
        path: any format libsndfile reads; `-` is standard input.

    Attributes:
        sample_rate: Hz.
        channels: number of channels.
        num_samples: samples per channel, None if not known beforehand (a pipe).

    Raises:
        UsageError: if there is no such file or it is a folder.
        Q2D2Error: if it is not audio.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = "standard input" if path == PIPE else str(path)
        if path != PIPE:
            check_input(path)
        try:
            self._file = soundfile.SoundFile(readable_stdin() if path == PIPE else path)
        except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
            reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
            raise Q2D2Error(f"cannot read {self.name} as audio: {reason}") from error
        self.sample_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.num_samples: int | None = self._file.frames if self._file.seekable() else None
        if self.channels > MAX_CHANNELS:
            raise Q2D2Error(f"{self.name} has {self.channels} channels: at most {MAX_CHANNELS} are supported")

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def blocks(self, seconds: float = 1.0) -> Iterator[np.ndarray]:
        """`(channels, samples)` float32 blocks, in order.

        Raises:
            Q2D2Error: if the file is damaged, holds no samples, or holds NaN or infinity.
        """
        size = max(1, int(seconds * self.sample_rate))
        position = 0
        while True:
            try:
                block: np.ndarray = self._file.read(size, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
                raise Q2D2Error(
                    f"cannot read {self.name} beyond {position / self.sample_rate:.2f} s: {reason}"
                ) from error
            if not len(block):
                break
            if not np.isfinite(block).all():
                bad = position + int(np.argwhere(~np.isfinite(block))[0][0])
                raise Q2D2Error(
                    f"{self.name} holds a NaN or infinite sample at {bad / self.sample_rate:.3f} s: repair it first"
                )
            position += len(block)
            yield block.T
        if not position:
            raise Q2D2Error(f"{self.name} is empty: it holds no samples")


def readable_stdin() -> int | BinaryIO:
    """Standard input as something libsndfile can read.

    A redirected file can be sought in and a pipe is read as it comes, except FLAC, which
    libsndfile cannot read from a pipe: it is put into a temporary file first.
    """
    stdin = sys.stdin.fileno()
    with contextlib.suppress(OSError):
        os.lseek(stdin, 0, os.SEEK_CUR)
        return os.dup(stdin)
    source = os.fdopen(os.dup(stdin), "rb", buffering=0)
    start = b""
    while len(start) < 4 and (more := source.read(4 - len(start))):
        start += more
    if start == b"fLaC":
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - libsndfile reads from it
        spool.write(start)
        shutil.copyfileobj(source, spool)
        spool.seek(0)
        return spool
    read_end, write_end = os.pipe()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    with contextlib.suppress(ValueError):  # not the main thread: then signals are not ours
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

    def forward() -> None:
        # libsndfile goes on reading through signals: an interrupt must end its input, or it
        # would only be noticed when the next audio comes. It also stops reading at the end of
        # the audio, which may be before the end of the pipe.
        with contextlib.suppress(BrokenPipeError), os.fdopen(write_end, "wb") as sink:
            sink.write(start)
            sink.flush()
            while wake_read not in select.select([source.fileno(), wake_read], [], [])[0]:
                data = source.read(65536)
                if not data:
                    break
                sink.write(data)
                sink.flush()

    threading.Thread(target=forward, daemon=True).start()
    return read_end


def read_mono(path: Path, sample_rate: int) -> np.ndarray:
    """A whole file as `(samples,)` float32 at `sample_rate`, channels averaged.

    Raises:
        Q2D2Error: as `AudioReader`.
    """
    mono, own_rate = read_original(path)
    return Resampler(own_rate, sample_rate, 1).push(mono[None], last=True)[0]


def read_original(path: Path) -> tuple[np.ndarray, int]:
    """A whole file as `(samples,)` float32, channels averaged, and its own rate, Hz.

    Raises:
        Q2D2Error: as `AudioReader`.
    """
    with AudioReader(path) as reader:
        return np.concatenate([block.mean(axis=0) for block in reader.blocks(10.0)]), reader.sample_rate
