"""Whole numbers in as few bytes as they need: seven bits a byte, least significant first. Imports nothing."""

from __future__ import annotations

MAX_BYTES = 10
"""Longest number that is read; its value is below 2**64."""


class VarintError(ValueError):
    """The bytes hold no number: they end too early, or it is 2**64 or more."""


def to_varint(number: int, size: int = 1) -> bytes:
    """`number`, at least 0, in at least `size` bytes; zeros are appended to a shorter one."""
    data = bytearray()
    while number >= 0x80 or len(data) < size - 1:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def from_varint(data: bytes | bytearray | memoryview, at: int) -> tuple[int, int]:
    """The number at offset `at`, and the offset behind it.

    Raises:
        VarintError: if there is none.
    """
    number = 0
    for place in range(MAX_BYTES):
        if at + place >= len(data):
            raise VarintError("the bytes end inside a number")
        byte = data[at + place]
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            if number >= 2**64:
                break
            return number, at + place + 1
    raise VarintError("a number is 2**64 or more")
