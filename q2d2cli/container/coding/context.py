"""What a context model is: counts for every pair index from those before it in the same block.

All arithmetic that decides a count is on whole numbers, so that writer and reader agree on every machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np


class Predictor(ABC):
    """Blocks side by side, one pair index of each at a time; each begins anew.

    Goes through the pairs of a frame in turn: `counts(0)`, `take(0, ...)`, `counts(1)`, ..., then the next frame.
    """

    @abstractmethod
    def counts(self, pair: int) -> np.ndarray:
        """`(rows, sizes[pair])` uint64, each at least 1, sums at most `ranges.MAX_TOTAL`."""

    @abstractmethod
    def take(self, pair: int, indices: np.ndarray) -> None:
        """The indices that were there: `(rows,)` int64."""

    @abstractmethod
    def keep(self, rows: int) -> None:
        """Go on with the first rows only."""


class ContextModel(ABC):
    """A context model that has been read.

    Attributes:
        sizes: points of each pair's grid.
        fingerprint: first 8 bytes of the SHA-256 of its file.
        weights: fingerprint of the codec model whose tokens it expects.
    """

    sizes: tuple[int, ...]
    fingerprint: bytes = b""
    weights: bytes = b""

    @abstractmethod
    def begin(self, rows: int) -> Predictor:
        """Start blocks side by side."""

    def intervals(self, indices: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """What the range coder wants of known indices.

        Args:
            indices: `(rows, frames, pairs)` int64; rows are filled up behind their length with anything in range.
            lengths: `(rows,)` frames of each, longest first.

        Returns:
            `(rows, frames, pairs, 3)` int64: start, count and total of each.
        """
        rows, _, pairs = indices.shape
        found = np.zeros((*indices.shape, 3), np.int64)
        predictor = self.begin(rows)
        for frame, rows in enumerate(sides(lengths)):
            predictor.keep(rows)
            for pair in range(pairs):
                symbols = indices[:rows, frame, pair]
                found[:rows, frame, pair] = spans(predictor.counts(pair), symbols)
                predictor.take(pair, symbols)
        return found

    def bits(self, indices: np.ndarray) -> list[np.ndarray]:
        """What every point of a pair's grid would cost at each place, given the indices that are there before it.

        Args:
            indices: `(rows, frames, pairs)` int64, a block each.

        Returns:
            For each pair `(rows, frames, points)` float32.
        """
        rows, frames, pairs = indices.shape
        found = [np.empty((rows, frames, size), np.float32) for size in self.sizes]
        predictor = self.begin(rows)
        for frame in range(frames):
            for pair in range(pairs):
                found[pair][:, frame] = costs(predictor.counts(pair))
                predictor.take(pair, indices[:, frame, pair])
        return found


def sides(lengths: np.ndarray) -> list[int]:
    """How many rows have each frame, of rows with these lengths, longest first."""
    frames = np.arange(lengths.max(initial=0))
    return (len(lengths) - np.searchsorted(lengths[::-1], frames, "right")).tolist()


def costs(counts: np.ndarray) -> np.ndarray:
    """`(rows, points)` counts to bits, float32."""
    return np.log2(counts.sum(axis=1, keepdims=True) / counts).astype(np.float32)


def spans(counts: np.ndarray, symbols: np.ndarray, ends: np.ndarray | None = None) -> np.ndarray:
    """Start, count and total of symbols.

    Args:
        counts: `(rows, alternatives)` uint64.
        symbols: `(rows,)`.
        ends: memory to work in: a 0 and room for all counts, uint64.

    Returns:
        `(rows, 3)` int64.
    """
    size = counts.shape[1]
    ends = np.zeros(counts.size + 1, np.uint64) if ends is None else ends[: counts.size + 1]
    # One sum over all rows is several times as fast as one for each.
    np.add.accumulate(counts.reshape(-1), out=ends[1:])
    before = ends[:-1:size]
    places = np.arange(len(counts)) * size + symbols
    starts = ends.take(places)
    found = np.stack([starts - before, ends.take(places + 1) - starts, ends[size::size] - before], axis=1)
    return found.astype(np.int64)
