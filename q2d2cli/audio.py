"""Audio files and pipes in and out, and resampling. Imports no torch."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import struct
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile
import soxr

from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.files import PIPE, check_input

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"})
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


class SampleSink(Protocol):
    """Where decoded audio goes."""

    def write(self, samples: np.ndarray) -> None:
        """Append `(channels, samples)` float32."""

    def close(self) -> None:
        """Finish the file."""


class WavWriter:
    """16-bit WAV to any binary file, a pipe included.

    Args:
        file: open for writing.
        sample_rate: Hz.
        channels: number of channels.
        num_samples: samples per channel if known; otherwise the sizes in the header are written
            on `close` where the file can be sought in, and say "until the end" where it cannot.
    """

    HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")

    def __init__(self, file: BinaryIO, sample_rate: int, channels: int, num_samples: int | None) -> None:
        self._file, self._rate, self._channels = file, sample_rate, channels
        self._declared, self._written = num_samples, 0
        file.write(self._header(num_samples))

    def _header(self, num_samples: int | None) -> bytes:
        frame = 2 * self._channels
        size = 0xFFFFFFFF if num_samples is None else min(num_samples * frame, 0xFFFFFFFF)
        riff = min(size + 36, 0xFFFFFFFF)
        rate = self._rate
        return self.HEADER.pack(
            b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, self._channels, rate, rate * frame, frame, 16, b"data", size
        )

    def write(self, samples: np.ndarray) -> None:
        """Append `(channels, samples)` float32; beyond full scale is clipped."""
        self._written += samples.shape[1]
        self._file.write((samples.T.clip(-1, 1) * 32767).round().astype("<i2").tobytes())

    def close(self) -> None:
        """Put the final sizes into the header."""
        if self._written != self._declared and self._file.seekable():
            self._file.seek(0)
            self._file.write(self._header(self._written))
            self._file.seek(0, os.SEEK_END)


class SoundFileWriter:
    """Any format libsndfile writes, to a file that can be sought in."""

    def __init__(self, file: BinaryIO, sample_rate: int, channels: int, container: str) -> None:
        self._guard = GuardedFile(file)
        subtype = "OPUS" if container == "OPUS" else None
        try:
            self._sound = soundfile.SoundFile(
                self._guard, "w", sample_rate, channels, format="OGG" if subtype else container, subtype=subtype
            )
        except (soundfile.LibsndfileError, ValueError, TypeError) as error:
            self._guard.check()
            raise UsageError(
                f"{container} cannot hold {channels} channels at {sample_rate} Hz: choose another format, such as .wav"
            ) from error

    def write(self, samples: np.ndarray) -> None:
        """Append `(channels, samples)` float32; beyond full scale is clipped."""
        try:
            self._sound.write(samples.T.clip(-1, 1))
        except (soundfile.LibsndfileError, AssertionError):
            self._guard.check()
            raise
        self._guard.check()

    def close(self) -> None:
        """Finish the file."""
        self._sound.close()
        self._guard.check()


class GuardedFile:
    """A file for libsndfile's callbacks, which cannot raise: keeps the first error for `check`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the error that a callback met."""
        if self._error:
            raise self._error

    def write(self, data: Any) -> int:
        """As a file's."""
        try:
            return self._file.write(data)
        except OSError as error:
            self._error = self._error or error
            return 0

    def read(self, size: int) -> bytes:
        """As a file's."""
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file's."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As a file's."""
        return self._file.tell()


def output_format(path: Path) -> str:
    """libsndfile's name of the format that the suffix of `path` stands for.

    Raises:
        UsageError: if it stands for none.
    """
    suffix = path.suffix.lower().lstrip(".")
    known = {"oga": "OGG", "opus": "OPUS", "aif": "AIFF"}
    name = known.get(suffix, suffix.upper())
    if suffix not in known and name not in soundfile.available_formats():
        raise UsageError(
            f"cannot write {path}: unknown audio format {path.suffix or 'without a suffix'!r}, use .wav or .flac"
        )
    return name


def open_sink(
    file: BinaryIO, path: Path, sample_rate: int, channels: int, num_samples: int | None
) -> WavWriter | SoundFileWriter:
    """A writer for the format of `path` into `file`; standard output gets WAV."""
    name = "WAV" if path == PIPE or not path.suffix else output_format(path)
    if name == "WAV":
        return WavWriter(file, sample_rate, channels, num_samples)
    return SoundFileWriter(file, sample_rate, channels, name)


class Resampler:
    """Streaming sample rate conversion (soxr, high quality); the result does not depend on the block sizes."""

    def __init__(self, rate_in: int, rate_out: int, channels: int) -> None:
        self._channels = channels
        self._stream = (
            None if rate_in == rate_out else soxr.ResampleStream(rate_in, rate_out, channels, dtype="float32")
        )

    def push(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """`(channels, samples)` float32 in, what is ready of the output out; `last` flushes."""
        if self._stream is None:
            return samples
        block = np.ascontiguousarray(samples.T, np.float32)
        out = self._stream.resample_chunk(block[:, 0] if self._channels == 1 else block, last=last)
        return out.reshape(-1, self._channels).T


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


def audio_files(folder: Path) -> list[Path]:
    """Audio files below `folder`, sorted.

    Raises:
        UsageError: if there is no such folder or no audio in it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give one with audio files in it")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise UsageError(f"no audio found in {folder}")
    return files
