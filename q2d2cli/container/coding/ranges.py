"""A range coder for one stream, and its decoder for many streams side by side (docs/format.md, "Range coder").

Martin 1979, "Range encoding", with 64 bits of range and words of 32 bits, the most significant first. A symbol takes
the part of the range that its count is of the total; totals need not be powers of two. Integer arithmetic alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from q2d2cli.container.header import FormatError

MAX_TOTAL = 2**24
"""The counts of a symbol's alternatives must add up to at most this."""
FULL = 2**64 - 1
WORD = 2**32
LOW = WORD - 1


def encode(symbols: Iterable[tuple[int, int, int]]) -> bytes:
    """Symbols to bytes.

    Args:
        symbols: of each its start (the sum of the counts before its own), its count (at least 1) and the total.

    Returns:
        The shortest bytes that decode to them; zeros at the end are left out.
    """
    words: list[int] = []
    low, span = 0, FULL
    for start, count, total in symbols:
        unit = span // total
        low += start * unit
        span = count * unit
        if span < WORD:
            words.append(low >> 32)
            low = (low & LOW) << 32
            span <<= 32
    # A carry out of `low` is the 33rd bit of a word, and belongs to the word before.
    parts = np.array(words, np.uint64)
    above, carries = (int.from_bytes(part.astype(">u4").tobytes(), "big") for part in (parts & LOW, parts >> 32))
    value = (above + (carries << 32) << 64) + low
    zeros = span.bit_length() - 1
    while (rounded := -(-value >> zeros) << zeros) >= value + span:
        zeros -= 1
    return rounded.to_bytes(8 + 4 * len(words), "big").rstrip(b"\0")


class Decoder:
    """Decodes streams side by side, one symbol of each at a time.

    Args:
        streams: what `encode` gave.
    """

    def __init__(self, streams: Sequence[bytes]) -> None:
        longest = max(map(len, streams), default=0)
        width = -(-longest // 4) + 3
        padded = b"".join(stream.ljust(4 * width, b"\0") for stream in streams)
        self._words = np.frombuffer(padded, ">u4").astype(np.uint64)
        self._rows = np.arange(len(streams))
        self._first = self._rows * width
        self._positions = self._first + 2
        self._ends = np.zeros(1, np.uint64)
        self._position, self._last = self._positions, self._first + width - 1
        self._code = self._words[self._first] << np.uint64(32) | self._words[self._first + 1]
        self._span = np.full(len(streams), FULL, np.uint64)
        # As rows: NumPy is slow with single numbers.
        self._word_span, self._word_bits = np.full((2, len(streams)), [[WORD], [32]], np.uint64)
        self._bounds: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def _keep(self, n: int) -> None:
        """Go on with the first streams only."""
        self._position, self._last = self._position[:n], self._last[:n]
        self._code, self._span = self._code[:n], self._span[:n]
        self._word_span, self._word_bits = self._word_span[:n], self._word_bits[:n]
        self._bounds = {}

    def decode(self, counts: np.ndarray) -> np.ndarray:
        """The next symbol of the first streams.

        Args:
            counts: `(streams, alternatives)` uint64, each at least 1, sums at most `MAX_TOTAL`; of no more streams
                than the time before.

        Returns:
            `(streams,)` int64.
        """
        n, size = counts.shape
        if n != len(self._code):
            self._keep(n)
        if size not in self._bounds:
            first = self._rows[:n] * size
            self._bounds[size] = first, first + (size - 1)
        first, last = self._bounds[size]
        if len(self._ends) <= counts.size:
            self._ends = np.zeros(counts.size + 1, np.uint64)
        code, span, ends = self._code, self._span, self._ends[1 : counts.size + 1]
        # One sum over all streams' counts, so that one search finds the symbols of all.
        np.add.accumulate(counts.reshape(-1), 0, None, ends)
        begin = self._ends[: counts.size : size]
        unit = span // (ends[size - 1 :: size] - begin)
        place = code // unit
        place += begin
        found = ends.searchsorted(place, "right")
        np.minimum(found, last, out=found)
        start = self._ends.take(found)
        np.multiply(ends.take(found) - start, unit, span)
        start -= begin
        start *= unit
        code -= start
        small = np.less(span, self._word_span).astype(np.uint64)
        shift = small * self._word_bits
        span <<= shift
        code <<= shift
        # Bytes that ended the stream are zeros that were left out; damaged streams go on with zeros, too.
        word = self._words.take(np.minimum(self._position, self._last))
        word *= small
        code |= word
        self._position += small.view(np.int64)
        found -= first
        return found

    def check(self, stream: int, data: bytes) -> None:
        """Raise FormatError if stream number `stream`, whose bytes are `data`, goes on after its last symbol."""
        if len(data) > 4 * (self._positions[stream] - self._first[stream]) or data.endswith(b"\0"):
            raise FormatError("entropy-coded payload has more bytes than it needs")
