"""Finding a block of a .q2d file by its number without reading what is before it. Imports no torch."""

from __future__ import annotations

import io
import os
from typing import BinaryIO

from q2d2cli.container.blocks import RawBlock, Scanner
from q2d2cli.container.header import Header

NEAR = 2**15
"""Bytes that are read through rather than halved once more."""
GUESSES = 4
"""How often the mean size of the blocks is trusted."""
LONGEST_END = 64
"""Bytes of the longest end block that is looked for."""


def find_block(file: BinaryIO, header: Header, begin: int, number: int, origin: int = 0) -> tuple[int, int]:
    """Where to read from in order to get the data block with this number.

    A guess says where it might be; the next sound block behind that place tells by its number on
    which side it is. No index is needed, and damage only makes for more guesses.

    Args:
        file: seekable.
        header: of the file.
        begin: where its blocks begin, bytes.
        number: of the block.
        origin: where in `file` the .q2d file begins.

    Returns:
        Offset and number of a sound data block at or before the one looked for, close to it; if
        there is none, of the first.
    """
    low, low_number, high = begin, 0, file.seek(0, os.SEEK_END) - origin
    first = next_block(file, header, begin, origin)
    size = high if first is None else first.end - first.offset
    for attempt in range(100):
        if min(high - low, size * (number - low_number)) <= NEAR:
            break
        # The first guesses take blocks to be as large as they were; then it is halving.
        guess = low + size * (number - low_number) - NEAR // 4 if attempt < GUESSES else (low + high) // 2
        guess = min(max(guess, low + 1), high - NEAR // 2)
        found = next_block(file, header, guess, origin)
        if found is None or found.offset >= high or found.number > number:
            high = guess
        else:
            low, low_number = found.offset, found.number
            size = max(1, (low - begin) // max(1, low_number))
    return low, low_number


def samples_at_end(file: BinaryIO, header: Header, begin: int, origin: int = 0) -> int | None:
    """The number of samples in the end block, None if the file does not end with a sound one that has it."""
    end = file.seek(0, os.SEEK_END) - origin
    start = max(begin, end - LONGEST_END)
    file.seek(origin + start)
    tail = file.read(LONGEST_END)
    for at in range(len(tail)):
        block = Scanner(io.BytesIO(tail[at:]), header, start + at).next()
        if isinstance(block, RawBlock) and block.kind == "end" and block.end == end:
            return block.samples
    return None


def next_block(file: BinaryIO, header: Header, offset: int, origin: int = 0) -> RawBlock | None:
    """The first sound data block at or behind `offset`, None if there is none."""
    file.seek(origin + offset)
    scanner = Scanner(file, header, offset)
    if not scanner.search(here=True) or scanner.other_file():
        return None
    while True:
        found = scanner.next()
        if isinstance(found, RawBlock):
            if found.kind == "data":
                return found
            if found.kind == "end":
                return None
        elif found.reason == "end" or scanner.other_file() or not scanner.search():
            return None
