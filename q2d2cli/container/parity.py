"""Parity blocks: Reed-Solomon over windows of a .q2d file (docs/format.md, "Parity block"). Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np

from q2d2cli.container import layout
from q2d2cli.container.blocks import LAYOUT, PARITY, to_block
from q2d2cli.container.header import CRC, FormatError
from q2d2cli.container.varint import VarintError, from_varint, to_varint
from q2d2cli.errors import UsageError

WINDOW_BYTES = 65536
"""About how much of a file is protected together."""
MAX_WINDOW = 2**18
"""Longest window that is read, bytes."""
PIECE_BYTES = 256
"""Parity bytes of a block."""
SYMBOLS = 255
"""Bytes of the longest codeword."""
SPARE = 2
"""Parity bytes of a codeword beyond the share that is asked for: they find where damage begins and ends."""
MAX_SHARE = 1.0


@dataclass(frozen=True)
class Facts:
    """What each parity block says about its window."""

    length: int
    """Bytes of the window."""
    depth: int
    """Codewords: byte `i` of the window belongs to codeword `i % depth`."""
    symbols: int
    """Parity bytes of a codeword."""
    end: bytes = b""
    """The file's end block without its CRC32 (a search would take it for the end), if it is the last window."""

    @property
    def parity_bytes(self) -> int:
        """Parity bytes of the window."""
        return self.depth * self.symbols

    @property
    def mendable(self) -> int:
        """Length of a lost stretch that is mended wherever it begins, bytes."""
        return max(0, self.symbols - SPARE) * self.depth

    @property
    def share(self) -> float:
        """The largest share for which `facts_for` gives as much parity, up to what may be asked for."""
        return min(MAX_SHARE, max(0.0, self.mendable - 0.5) / self.length)


def check_share(share: float) -> float:
    """`share`, if parity of such a share of a window is possible.

    Raises:
        UsageError: if not.
    """
    if not 0 < share <= MAX_SHARE:
        raise UsageError(f"parity {share:.1%} is out of range: give more than 0% and up to {MAX_SHARE:.0%}")
    return share


def facts_for(length: int, share: float, end: bytes = b"") -> Facts:
    """How a window of so many bytes is protected against the loss of a share of it."""
    data = int((SYMBOLS - SPARE - 1) / (1 + share))
    depth = -(-length // data)
    return Facts(length, depth, min(SYMBOLS - 1, math.ceil(share * length / depth) + SPARE), end)


def describe_window(facts: Facts, at: int) -> bytes:
    """The facts as they begin the payload of a parity block; `at` is the offset of its bytes in the parity."""
    numbers = (facts.length, facts.depth, facts.symbols, len(facts.end))
    return b"".join(map(to_varint, numbers)) + facts.end + to_varint(at)


def parse(payload: bytes) -> tuple[Facts, int, bytes] | None:
    """Facts, offset and parity bytes of a parity block's payload; None if they make no sense."""
    try:
        length, at = from_varint(payload, 0)
        depth, at = from_varint(payload, at)
        symbols, at = from_varint(payload, at)
        size, at = from_varint(payload, at)
        end = payload[at : at + size]
        offset, at = from_varint(payload, at + size)
    except VarintError:
        return None
    if not 1 <= length <= MAX_WINDOW or not 1 <= depth <= length or len(end) != size:
        return None
    if depth * symbols > 2 * length + SYMBOLS or not 1 <= symbols < SYMBOLS or -(-length // depth) + symbols > SYMBOLS:
        return None
    facts = Facts(length, depth, symbols, end)
    return (facts, offset, payload[at:]) if offset + len(payload) - at <= facts.parity_bytes else None


def block_sizes(facts: Facts, number: int) -> Iterator[tuple[int, int, int]]:
    """Offset in the parity of each parity block of window `number`, its size in bytes and that of what is before its
    parity bytes."""
    for at in range(0, facts.parity_bytes, PIECE_BYTES):
        start, piece = len(describe_window(facts, at)), min(PIECE_BYTES, facts.parity_bytes - at)
        start += 1 + len(to_varint(number)) + len(to_varint(start + piece))
        yield at, start + piece + CRC.size, start


def blocks_of(facts: Facts, number: int, parity: bytes) -> list[bytes]:
    """The parity blocks of window `number`."""
    return [
        to_block(PARITY, number, describe_window(facts, at) + parity[at : at + PIECE_BYTES])
        for at in range(0, len(parity), PIECE_BYTES)
    ]


def parity_of(window: bytes, facts: Facts) -> bytes:
    """Parity of a window: byte `j * depth + c` is parity symbol `j` of codeword `c`."""
    coder = codec(facts.symbols)
    rows = bytearray(facts.parity_bytes)
    for word in range(facts.depth):
        rows[word :: facts.depth] = coder.encode(window[word :: facts.depth])[-facts.symbols :]
    return bytes(rows)


def correct(window: bytes, parity: bytes, facts: Facts, erased: Sequence[tuple[int, int]]) -> bytes | None:
    """The window as it was.

    Args:
        window: as it arrived, `facts.length` bytes.
        parity: as it arrived, `facts.parity_bytes` bytes.
        facts: of the window.
        erased: stretches `(begin, end)` of window and parity, put together, that are not known.

    Returns:
        The window, None if it cannot be corrected. It is to be checked: it may be another one.
    """
    from reedsolo import ReedSolomonError

    coder = codec(facts.symbols)
    fixed = bytearray(window)
    for word in range(facts.depth):
        data = window[word :: facts.depth]
        places = [place for begin, end in erased for place in places_of(facts, word, len(data), begin, end)]
        if len(places) > facts.symbols:
            return None
        received = np.frombuffer(data + parity[word :: facts.depth], np.uint8)
        if not places and not syndromes(received, facts.symbols).any():
            continue
        try:
            fixed[word :: facts.depth] = coder.decode(data + parity[word :: facts.depth], erase_pos=places)[0]
        except (ReedSolomonError, ZeroDivisionError, IndexError):
            return None
    return bytes(fixed)


def consistent(window: bytes, parity: bytes, facts: Facts, erased: Sequence[tuple[int, int]], words: int) -> bool:
    """Whether the first codewords can be right everywhere but in the erased stretches (arguments as of `correct`)."""
    for word in range(min(words, facts.depth)):
        data = window[word :: facts.depth]
        places = [place for begin, end in erased for place in places_of(facts, word, len(data), begin, end)]
        spare = facts.symbols - len(places)
        received = np.frombuffer(data + parity[word :: facts.depth], np.uint8)
        left = syndromes(received, facts.symbols)
        # Without what the erased places explain, nothing must be left (Forney's modified syndromes).
        for place in places:
            left[:-1] = times(left[:-1], (len(received) - 1 - place) % (2**8 - 1)) ^ left[1:]
        if spare < 0 or left[:spare].any():
            return False
    return True


def syndromes(received: np.ndarray, symbols: int) -> np.ndarray:
    """A codeword, uint8, as a polynomial at `2**0`, `2**1`, ...: all 0 if it is right. Any number, uint8.

    The package's function does the same, a byte at a time.
    """
    logs, powers = LOG[received], _powers(len(received), symbols)
    return np.asarray(np.bitwise_xor.reduce(np.where(received[:, None], EXP[logs[:, None] + powers], 0), axis=0))


@lru_cache(maxsize=8)
def _powers(size: int, symbols: int) -> np.ndarray:
    """Logarithms of the powers of `2**j` by which the bytes of a codeword count, `(size, symbols)`."""
    return np.outer(np.arange(size)[::-1], np.arange(symbols)) % (2**8 - 1)


def times(values: np.ndarray, log: int) -> np.ndarray:
    """Elements of GF(256), uint8, times `2**log`."""
    return np.where(values, EXP[LOG[values] + log], 0).astype(np.uint8)


def tables() -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of GF(256) with the polynomial 0x11D to base 2 (that of 0 is not used), and powers of 2, twice."""
    log, exp, value = np.zeros(256, np.int64), np.zeros(510, np.uint8), 1
    for power in range(255):
        exp[power] = exp[power + 255] = value
        log[value] = power
        value = value << 1 ^ (0x11D if value & 0x80 else 0)
    return log, exp


LOG, EXP = tables()


def places_of(facts: Facts, word: int, data: int, begin: int, end: int) -> Iterator[int]:
    """Places in a codeword of the bytes `begin` to `end` of window and parity, put together."""
    depth, length = facts.depth, facts.length
    yield from range(max(0, -(-(begin - word) // depth)), max(0, -(-(min(end, length) - word) // depth)))
    first, last = max(0, begin - length), max(0, end - length)
    yield from range(data + max(0, -(-(first - word) // depth)), data + max(0, -(-(last - word) // depth)))


class ParityWriter:
    """Writes a file's bytes, and parity behind each window of them.

    Args:
        file: open for writing in binary.
        share: of a window that may be lost in one stretch and be mended; None for no parity.
        with_layout: whether parity goes with layout blocks, which those files need whose blocks differ in size.

    Attributes:
        bytes_written: size of the file so far.
    """

    def __init__(self, file: BinaryIO, share: float | None, with_layout: bool) -> None:
        self._file, self._share, self._with_layout = file, share, with_layout and share is not None
        self._window, self._windows = bytearray(), 0
        self._first, self._begins = 0, list[int]()
        self.bytes_written = 0

    def put(self, data: bytes) -> None:
        """Write a block that holds no audio, or the header."""
        if self._share is not None and len(self._window) >= WINDOW_BYTES:
            self.protect()
        self._write(data)

    def put_data(self, number: int, block: bytes) -> None:
        """Write a data block."""
        self.put(block)
        if self._with_layout:
            # A new window may have begun.
            self._first = number if not self._begins else self._first
            self._begins.append(len(self._window) - len(block))

    def put_end(self, block: bytes) -> None:
        """Write the end block, which the parity before it holds, too."""
        if self._share is not None:
            self.protect(block[: -CRC.size])
        self._write(block)

    def protect(self, end: bytes = b"") -> None:
        """Write the parity of what was written since the last."""
        assert self._share is not None
        if len(self._begins) >= layout.LEAST_BLOCKS:
            block = to_block(LAYOUT, self._first, layout.describe(self._begins, len(self._window)))
            self._write(layout.copies(self._share) * block)
        facts = facts_for(len(self._window), self._share, end)
        parity = parity_of(bytes(self._window), facts)
        for block in blocks_of(facts, self._windows, parity):
            self._write(block)
        self._window.clear()
        self._begins.clear()
        self._windows += 1

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.bytes_written += len(data)
        if self._share is not None:
            self._window += data


@lru_cache(maxsize=8)
def codec(symbols: int) -> Any:
    """The Reed-Solomon code with so many parity bytes.

    Raises:
        FormatError: if the package is missing.
    """
    try:
        from reedsolo import RSCodec
    except ImportError as error:
        raise FormatError("has parity, which needs one more package: pip install reedsolo") from error
    return RSCodec(symbols)
