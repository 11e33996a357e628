"""Sample rate conversion, streaming."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import soxr

SEGMENT = 10
"""Seconds after which a fresh filter takes over, where a signal can be entered."""
FILTER_SAMPLES = 4000
"""Samples, at the lower rate, that are more than the filter's length."""


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


@lru_cache(maxsize=64)
def held_back(rate_in: int, rate_out: int) -> float:
    """Seconds of audio that a `Resampler` holds back at most: found by feeding one in pieces of 5 ms."""
    resampler, piece = Resampler(rate_in, rate_out, 1), np.zeros((1, max(1, rate_in // 200)), np.float32)
    given, most = 0, 0.0
    for number in range(1, 101):
        given += resampler.push(piece).shape[1]
        most = max(most, number * piece.shape[1] / rate_in - given / rate_out)
    return most


class SeekableResampler:
    """Streaming sample rate conversion that can begin anywhere and gives there exactly what it gives from the start on.

    A filter that begins elsewhere rounds elsewhere. So every `SEGMENT` seconds a fresh one takes over, which was
    fed from long enough before that none of its zeros are heard.

    Args:
        rate_in: rate of what is pushed, Hz.
        rate_out: rate of what comes out, Hz.
        channels: of both.
        start: first sample wanted, at `rate_out`.

    Attributes:
        first: the first sample to push, at `rate_in`; `start` or some time before.
    """

    def __init__(self, rate_in: int, rate_out: int, channels: int, start: int = 0) -> None:
        self._rates, self._channels = (rate_in, rate_out), channels
        self._overlap = -(-FILTER_SAMPLES // min(rate_in, rate_out))
        self._segment = start // (SEGMENT * rate_out)
        self._skip = start - self._segment * SEGMENT * rate_out
        self.first = self._begin(self._segment) * rate_in
        if rate_in == rate_out:
            self.first, self._skip = start, 0
        self._pushed = self.first
        self._filters: list[SegmentFilter] = []

    def push(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """`(channels, samples)` float32 in, what is ready of the output out; `last` flushes."""
        rate_in, rate_out = self._rates
        if rate_in == rate_out:
            return samples
        end = self._pushed + samples.shape[1]
        while (begin := self._begin(self._segment) * rate_in) < end:
            start = self._segment * SEGMENT * rate_out
            skip = start - self._begin(self._segment) * rate_out
            stream = Resampler(rate_in, rate_out, self._channels)
            self._filters.append(SegmentFilter(stream, begin, skip, SEGMENT * rate_out))
            self._segment += 1
        for one in self._filters:
            one.push(samples[:, max(0, one.begin - self._pushed) :], last)
        self._pushed = end
        pieces = [np.empty((self._channels, 0), np.float32)]
        while self._filters:
            pieces.append(self._filters[0].take())
            if self._filters[0].missing:
                break
            self._filters.pop(0)
        ready = np.concatenate(pieces, axis=1)
        skipped = min(self._skip, ready.shape[1])
        self._skip -= skipped
        return ready[:, skipped:]

    def _begin(self, segment: int) -> int:
        """Seconds from which on the filter of a segment is fed."""
        return max(0, segment * SEGMENT - self._overlap)


class SegmentFilter:
    """The filter of one segment, which drops what it gives before and behind that.

    Args:
        stream: fresh.
        begin: the first sample that it is fed, counted from the signal's start.
        skip: samples it gives before its segment.
        length: samples of its segment.
    """

    def __init__(self, stream: Resampler, begin: int, skip: int, length: int) -> None:
        self._stream, self.begin, self._skip, self.missing = stream, begin, skip, length
        self._ready: list[np.ndarray] = []

    def push(self, samples: np.ndarray, last: bool) -> None:
        """Take the next samples."""
        found = self._stream.push(samples, last)
        skipped = min(self._skip, found.shape[1])
        self._skip -= skipped
        found = found[:, skipped : skipped + self.missing]
        self.missing -= found.shape[1]
        self._ready.append(found)

    def take(self) -> np.ndarray:
        """What is ready of the segment."""
        ready, self._ready = np.concatenate(self._ready, axis=1), []
        return ready
