"""Reading audio: files and pipes, block by block or whole."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from q2d2cli.audio.checking import check_finite
from q2d2cli.audio.resampling import Resampler
from q2d2cli.audio.sources import UNSIZED, RawFormat, check_limits, ffmpeg_source, last_message, open_source
from q2d2cli.audio.tags import read_tags
from q2d2cli.container.tags import Tags
from q2d2cli.errors import Q2D2Error, muted, report
from q2d2cli.files import PIPE, open_binary

LOUD = 4.0
"""Samples beyond so many times full scale are warned of: no recording, but numbers at another scale."""
COMPRESSED = frozenset({"FLAC", "MP3", "OGG"})
"""libsndfile's formats that may hold fewer samples than they declare."""
SHORTENED = re.compile(r"^\s*(?:data|SSND|Data Size|BODY|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""How libsndfile logs that a file ends before its audio does; declared bytes and those that are there."""
STRAY = re.compile(r"Unknown chunk marker \(\w+\) at position (\w+)")
"""How libsndfile logs that what follows the audio makes no sense."""


class AudioReader:
    """An audio file, or standard input, read in blocks.

    Args:
        path: any format that libsndfile reads, or ffmpeg where it is installed; `-` is standard input.
        raw: the format of a file without header.
        opened: `path`, if it is open already.

    Attributes:
        sample_rate: Hz.
        channels: number of channels.
        declared: samples per channel that the file says it has, None if it does not (a pipe).
        num_samples: those if it is certain that they are there, else None.
        warnings: what the user should know of a file that was read all the same; complete when `blocks` ends.

    Raises:
        UsageError: if there is no such file or it is a folder.
        Q2D2Error: if it is not audio, or has more than 64 channels or a rate above 1 MHz.
    """

    def __init__(self, path: Path, raw: RawFormat | None = None, opened: BinaryIO | None = None) -> None:
        self.name = "standard input" if path == PIPE else str(path)
        self.warnings: list[str] = []
        with ExitStack() as stack:
            if opened is None:
                opened = stack.enter_context(open_binary(path))
            self._source = open_source(opened, self.name, raw, stack)
            self._tagged = self._source.descriptor if self._source.seekable else None
            self._file = self._open(stack)
            self.sample_rate: int = self._file.samplerate
            self.channels: int = self._file.channels
            known = self._file.frames < UNSIZED or self._source.seekable
            self.declared: int | None = self._file.frames if known else None
            certain = self._source.seekable and self._file.format not in COMPRESSED
            self.num_samples = self.declared if certain else None
            check_limits(self.name, self.sample_rate, self.channels)
            self._stack = stack.pop_all()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def blocks(self, seconds: float = 1.0) -> Iterator[np.ndarray]:
        """`(channels, samples)` float32 blocks, in order.

        A file that is cut off or damaged ends where it cannot be read any more, with a warning.

        Raises:
            Q2D2Error: if the file holds no samples that can be read, or holds NaN or infinity.
        """
        size = max(1, int(seconds * self.sample_rate))
        position, peak, failure = 0, 0.0, ""
        while not failure:
            block, failure = self._read(size)
            if not len(block):
                break
            check_finite(block, self.name, position, self.sample_rate)
            peak = max(peak, float(np.abs(block).max()))
            position += len(block)
            yield block.T
        failure = failure or self._ending(position)
        if not position:
            reason = f"cannot be read as audio: {failure}" if failure else "is empty: it holds no samples"
            raise Q2D2Error(f"{self.name} {reason}")
        if failure:
            there = f"took the {position / self.sample_rate:.2f} s that are there"
            self.warnings.append(f"{self.name} is damaged or cut off: {failure}; {there}")
        if peak > LOUD:
            self.warnings.append(
                f"{self.name} has samples of {peak:.6g} times full scale, which cannot be kept: scale it to +-1 first"
            )

    def tags(self) -> Tags:
        """Tags of a file, not of a pipe that is read as it comes; what keeps any of them out is among the warnings."""
        if self._tagged is None:
            return Tags()
        tags, problem = read_tags(self._tagged, self._file)
        if problem:
            self.warnings.append(f"{self.name}: {problem}")
        return tags

    def _open(self, stack: ExitStack) -> soundfile.SoundFile:
        try:
            return self._open_source(stack)
        except (soundfile.LibsndfileError, OSError) as error:
            reason = message(error)
        if self._source.seekable:
            try:
                self._source = ffmpeg_source(self._source.descriptor, stack)
                return self._open_source(stack)
            except (Q2D2Error, soundfile.LibsndfileError, OSError) as error:
                reason = f"{reason}; {message(error)}"
        if Path(self.name).suffix.lower() in (".raw", ".pcm"):
            reason += "; if it has no header, use --raw"
        raise Q2D2Error(f"cannot read {self.name} as audio: {reason}")

    def _open_source(self, stack: ExitStack) -> soundfile.SoundFile:
        raw = self._source.raw
        form: dict[str, Any] = {}
        if raw is not None:
            form = {"format": "RAW", "samplerate": raw.sample_rate, "channels": raw.channels, "subtype": raw.subtype}
            form["endian"] = "LITTLE"
        with self._silence():
            return stack.enter_context(soundfile.SoundFile(self._source.descriptor, closefd=False, **form))

    def _silence(self) -> contextlib.AbstractContextManager[None]:
        return muted() if self._source.noisy else contextlib.nullcontext()

    def _read(self, size: int) -> tuple[np.ndarray, str]:
        """Up to `(size, channels)` samples, and why there are no more if that is an error."""
        out = np.full((size, self.channels), np.nan, np.float32)
        try:
            with self._silence():
                return self._file.read(out=out), ""
        except (soundfile.LibsndfileError, RuntimeError) as error:
            # What was decoded before the error is there, and what follows is as it was.
            return out[: int(np.isnan(out).any(axis=1).argmax())], message(error)

    def _ending(self, samples: int) -> str:
        """What is wrong with a file that ended after so many samples; empty if nothing is."""
        if self._source.ffmpeg is not None:
            process, messages = self._source.ffmpeg
            code = process.wait()
            return last_message(messages) if code or os.fstat(messages.fileno()).st_size else ""
        # The length of MP3 and Ogg is an estimate.
        slack = self.sample_rate // 20 if self._file.format in ("MP3", "OGG") else 0
        if self.declared is not None and samples + slack < self.declared:
            return f"it declares {self.declared / self.sample_rate:.2f} s"
        if missing := shortened(self._file.extra_info):
            return missing
        if self._source.seekable and (found := STRAY.search(self._file.extra_info)):
            size = os.fstat(self._source.descriptor).st_size
            if 10 * (stray := size - int(found[1])) > size:
                return f"{stray} bytes follow that its header does not speak of"
        return ""


def message(error: Exception) -> str:
    """An error's message, to be put into a sentence."""
    text = str(getattr(error, "error_string", error)).strip().removeprefix("Error : ").rstrip(".")
    return text or type(error).__name__


def read_mono(path: Path, sample_rate: int) -> np.ndarray:
    """A whole file as `(samples,)` float32 at `sample_rate`, channels averaged; warnings are printed.

    Raises:
        Q2D2Error: as `AudioReader`.
    """
    mono, own_rate = read_original(path)
    return Resampler(own_rate, sample_rate, 1).push(mono[None], last=True)[0]


def read_original(path: Path) -> tuple[np.ndarray, int]:
    """A whole file as `(samples,)` float32, channels averaged, and its own rate, Hz; warnings are printed.

    Raises:
        Q2D2Error: as `AudioReader`.
    """
    with AudioReader(path) as reader:
        samples = np.concatenate([block.mean(axis=0) for block in reader.blocks(10.0)])
    for warning in reader.warnings:
        warn(warning)
    return samples, reader.sample_rate


def file_seconds(path: Path) -> float:
    """Seconds of audio in a file that libsndfile can seek in, from its head; that some is missing is printed.

    Raises:
        Q2D2Error: if it cannot be read, or holds no samples.
    """
    try:
        info = soundfile.info(os.fsencode(path))
    except soundfile.LibsndfileError as error:
        raise Q2D2Error(f"cannot read {path} as audio: {message(error)}") from error
    if not info.frames:
        raise Q2D2Error(f"{path} is empty: it holds no samples")
    if missing := shortened(info.extra_info):
        warn(f"{path} is damaged or cut off: {missing}; took the {info.duration:.2f} s that are there")
    return float(info.duration)


def shortened(log: str) -> str:
    """What libsndfile's log says of a file that ends before its audio does; empty if it does not."""
    if found := SHORTENED.search(log):
        declared, there = map(int, found.groups())
        if there < declared < UNSIZED:
            return f"it declares {declared} bytes of audio and holds {there}"
    return ""


@functools.cache
def warn(text: str) -> None:
    """Print a warning the first time it comes: files are read again and again."""
    report(text)
