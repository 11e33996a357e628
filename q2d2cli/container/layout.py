"""Layout blocks: where the data blocks of a parity window begin (docs/format.md, "Layout block"). Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from q2d2cli.container.varint import VarintError, from_varint, to_varint

LEAST_BLOCKS = 3
"""Fewer data blocks need no layout: what is lost in two places is found without."""
LEAST_DISTANCE = 7
"""Bytes of the shortest block."""
WIDEST = 24
"""Bits of the largest distance that is read."""


def copies(share: float) -> int:
    """How many layout blocks a window gets of which such a share may be lost: one must be left."""
    return 2 + int(4 * share)


def describe(begins: Sequence[int], end: int) -> bytes:
    """The payload of a layout block.

    Args:
        begins: where in the window its data blocks begin, bytes; at least one.
        end: where its layout blocks begin.
    """
    distances = np.diff([*begins, end])
    least = int(distances.min())
    width = int(distances.max() - least).bit_length()
    bits = (distances - least)[:, None] >> np.arange(width) & 1
    numbers = b"".join(map(to_varint, (len(begins), begins[0], least, width)))
    return numbers + np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


def parse(payload: bytes, length: int) -> list[int] | None:
    """Where in a window of so many bytes its data blocks begin, and behind them its layout blocks.

    Returns:
        None if the payload makes no sense.
    """
    try:
        count, at = from_varint(payload, 0)
        first, at = from_varint(payload, at)
        least, at = from_varint(payload, at)
        width, at = from_varint(payload, at)
    except VarintError:
        return None
    if not 1 <= count <= length // LEAST_DISTANCE or max(first, least) > length or width > WIDEST:
        return None
    if len(payload) - at != -(-count * width // 8):
        return None
    bits = np.unpackbits(np.frombuffer(payload, np.uint8, offset=at), count=count * width, bitorder="little")
    distances = least + bits.reshape(count, width) @ (1 << np.arange(width))
    begins = [first, *(first + np.cumsum(distances)).tolist()]
    return begins if begins[-1] < length else None
