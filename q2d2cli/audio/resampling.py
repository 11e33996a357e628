"""Sample rate conversion, streaming."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import soxr


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
