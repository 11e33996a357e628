"""Clips to samples, several ahead of the model."""

from __future__ import annotations

import contextlib
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np

from q2d2cli.audio import AudioReader
from q2d2cli.corpus.sources import CorpusClip, StoreError, read_place
from q2d2cli.errors import Q2D2Error

LONG_SECONDS = 120.0
"""Longer clips are not held in memory: they are encoded as they are read."""
READERS = 4
AHEAD = 32
"""Clips that are read ahead of the model."""
T = TypeVar("T")


@dataclass(frozen=True)
class Loaded:
    """A clip that was read.

    Attributes:
        clip: which.
        samples: `(samples,)` float32, channels averaged; None if it is long or could not be read.
        rate: Hz.
        reason: why it could not be read.
    """

    clip: CorpusClip
    samples: np.ndarray | None = None
    rate: int = 0
    reason: str | None = None


@contextlib.contextmanager
def on_disk(clip: CorpusClip) -> Iterator[Path]:
    """A file with the clip's audio, encoded as it was.

    Raises:
        Q2D2Error: if the clip has a problem or there is no such object; names the source.
        StoreError: if the store cannot be reached.
    """
    if clip.problem is not None:
        raise Q2D2Error(f"{clip.source} {clip.problem}")
    if clip.data is None and clip.place is not None and "://" not in clip.place:
        yield Path(clip.place)
        return
    data = clip.data if clip.data is not None else read_place(str(clip.place))
    suffix = PurePosixPath(clip.source).suffix
    with tempfile.NamedTemporaryFile(suffix=suffix if suffix.isascii() else "") as file:
        file.write(data)
        file.flush()
        try:
            yield Path(file.name)
        except Q2D2Error as error:
            raise type(error)(str(error).replace(file.name, clip.source)) from error


def blocks(clip: CorpusClip, reader: AudioReader) -> Iterator[np.ndarray]:
    """`(samples,)` float32 blocks of what belongs to the clip, channels averaged."""
    begin = round((clip.start or 0.0) * reader.sample_rate)
    end = None if clip.seconds is None else begin + round(clip.seconds * reader.sample_rate)
    position, found = 0, False
    for block in reader.blocks(10.0):
        mono = block.mean(axis=0)
        part = mono[max(0, begin - position) : None if end is None else max(0, end - position)]
        position += len(mono)
        if len(part):
            found = True
            yield part
        if end is not None and position >= end:
            break
    if not found or (end is not None and position < end - reader.sample_rate // 100):
        raise Q2D2Error(
            f"{clip.source} ends at {position / reader.sample_rate:.2f} s: the clip was to begin at {clip.start} s"
            + ("" if clip.seconds is None else f" and last {clip.seconds} s")
        )


def load(clip: CorpusClip) -> Loaded:
    """Read a clip; what is wrong with it becomes a reason.

    Raises:
        StoreError: if a store cannot be reached.
    """
    try:
        with on_disk(clip) as path, AudioReader(path) as reader:
            known = reader.num_samples
            if clip.start is None and known is not None and known > LONG_SECONDS * reader.sample_rate:
                return Loaded(clip, None, reader.sample_rate)
            return Loaded(clip, np.concatenate(list(blocks(clip, reader))), reader.sample_rate)
    except StoreError:
        raise
    except Q2D2Error as error:
        return Loaded(clip, reason=str(error))


def load_ahead(clips: Iterator[CorpusClip]) -> Iterator[Loaded]:
    """Clips in their order, some of them read ahead by other threads."""
    with ThreadPoolExecutor(READERS, "q2d2-read") as pool:
        waiting: deque[Future[Loaded]] = deque()
        try:
            for clip in clips:
                waiting.append(pool.submit(load, clip))
                if len(waiting) >= AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
