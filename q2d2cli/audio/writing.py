"""Writing audio: WAV to any file or pipe, other formats through libsndfile."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import soundfile

from q2d2cli.errors import UsageError
from q2d2cli.files import descriptor

T = TypeVar("T")


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
        self._start = file.tell() if file.seekable() else None
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
        self._file.write(to_int16(samples))

    def close(self) -> None:
        """Put the final sizes into the header."""
        if self._written != self._declared and self._start is not None:
            end = self._file.tell()
            self._file.seek(self._start)
            self._file.write(self._header(self._written))
            self._file.seek(end)


class RawWriter:
    """PCM without header, little endian, channels interleaved, to any binary file.

    Args:
        file: open for writing.
        sample_format: `s16le` or `f32le`.
    """

    def __init__(self, file: BinaryIO, sample_format: str) -> None:
        self._file, self._format = file, sample_format

    def write(self, samples: np.ndarray) -> None:
        """Append `(channels, samples)` float32; beyond full scale is clipped in `s16le`."""
        floats = self._format == "f32le"
        self._file.write(samples.T.astype("<f4").tobytes() if floats else to_int16(samples))


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
        self._guard.check()

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
        try:
            self._sound.close()
        except soundfile.LibsndfileError:
            self._guard.check()
            raise
        self._guard.check()

    def abandon(self) -> None:
        """Let go of the file, which is not to be finished."""
        self._guard.shut()
        with contextlib.suppress(soundfile.LibsndfileError):
            self._sound.close()


def to_int16(samples: np.ndarray) -> bytes:
    """`(channels, samples)` as interleaved 16-bit little-endian; beyond full scale is clipped."""
    return (samples.T.clip(-1, 1) * 32767).round().astype("<i2").tobytes()


class GuardedFile:
    """A file for libsndfile's callbacks, which cannot raise: keeps the first error for `check`.

    An interrupt is one too. After an error nothing reaches the file any more.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: BaseException | None = None
        self._shut = False

    def check(self) -> None:
        """Raise the error that a callback met."""
        if self._error:
            raise self._error

    def shut(self) -> None:
        """Let nothing reach the file any more."""
        self._shut = True

    def _call(self, method: Callable[..., T], *arguments: Any, otherwise: T) -> T:
        if self._shut:
            return otherwise
        try:
            return method(*arguments)
        except BaseException as error:
            self._error, self._shut = error, True
            return otherwise

    def write(self, data: Any) -> int:
        """As a file's."""
        return self._call(self._file.write, data, otherwise=0)

    def read(self, size: int) -> bytes:
        """As a file's."""
        return self._call(self._file.read, size, otherwise=b"")

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file's."""
        return self._call(self._file.seek, offset, whence, otherwise=0)

    def tell(self) -> int:
        """As a file's."""
        return self._call(self._file.tell, otherwise=0)


def output_format(path: Path) -> str:
    """libsndfile's name of the format that the suffix of `path` stands for.

    Raises:
        UsageError: if it stands for none.
    """
    suffix = path.suffix.lower().lstrip(".")
    known = {"oga": "OGG", "opus": "OPUS", "aif": "AIFF"}
    if suffix == "raw":
        raise UsageError(f"cannot write {path}: samples without a header do not say what they are, use .wav or .flac")
    name = known.get(suffix, suffix.upper())
    if suffix not in known and name not in soundfile.available_formats():
        raise UsageError(
            f"cannot write {path}: unknown audio format {path.suffix or 'without a suffix'!r}, use .wav or .flac"
        )
    return name


@contextlib.contextmanager
def open_sink(
    file: BinaryIO, path: Path, sample_rate: int, channels: int, num_samples: int | None, raw: str | None = None
) -> Iterator[WavWriter | SoundFileWriter | RawWriter]:
    """A writer for the format of `path` into `file`, closed at the end; an open descriptor (`-`) gets WAV.

    With `raw` a writer for PCM of that sample format instead, whatever `path` is.

    Raises:
        UsageError: if the suffix of `path` stands for no format, or for one that does not fit.
    """
    if raw is not None:
        yield RawWriter(file, raw)
        return
    name = "WAV" if descriptor(path, 1) is not None or not path.suffix else output_format(path)
    if name == "WAV":
        wav = WavWriter(file, sample_rate, channels, num_samples)
        yield wav
        wav.close()
        return
    if not file.seekable():
        raise UsageError(f"cannot write {path}: {name} does not go into a pipe or device, WAV does")
    sound = SoundFileWriter(file, sample_rate, channels, name)
    try:
        yield sound
        sound.close()
    finally:
        sound.abandon()
