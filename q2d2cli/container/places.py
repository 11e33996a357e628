"""Data blocks of a damaged robust file by their places, which are known though no checksum matches. No torch."""

from __future__ import annotations

from q2d2cli.container.blocks import DATA, END, LONGEST_HEAD, SHORT, BlockHead, RawBlock, Scanner, read_head
from q2d2cli.container.header import CRC, Header
from q2d2cli.container.payload import plain_bytes
from q2d2cli.container.varint import to_varint

AHEAD = 3
"""Places in a row that are compared with what a writer would have written there."""


class Places:
    """What stands at the place of each block of a file whose payload has a fixed size.

    Args:
        header: of a file of version 2 that is not entropy coded.
    """

    def __init__(self, header: Header) -> None:
        self._header = header
        self._frames = None if header.num_samples is None else header.frames_for(header.num_samples)

    def here(self, scanner: Scanner, expected: int, most: int) -> RawBlock | None:
        """The damaged data block that begins where `scanner` stands, None if none seems to.

        Its number is the one that agrees best with its own head and those in the places behind it: any of them may
        be damaged, and blocks may be gone.

        Args:
            scanner: at what is no sound block.
            expected: number of the block that should be here.
            most: how many may be lost before it.
        """
        best, number = self._agreement(scanner, expected), expected
        for step, at in enumerate((0, len(self._head(expected)) + self._payload(expected) + CRC.size)):
            head = read_head(bytearray(scanner.peek(at, LONGEST_HEAD)), 0)
            other = -1 if head is None else head.number - step
            if not expected < other <= expected + most:
                continue
            # A wrong byte in each of a few heads in a row is no sign that blocks are gone.
            agreement = self._agreement(scanner, other)
            if agreement > best + (number == expected):
                best, number = agreement, other
        if best < 0:
            return None
        start, frames = self._head(number), self._frames_of(number)
        size = len(start) + self._payload(number) + CRC.size
        data, offset = scanner.peek(0, size), scanner.offset
        if len(data) < size:
            return None
        payload = data[len(start) : -CRC.size]
        place = (start[0], number, offset, offset + len(start), offset + size)
        return RawBlock("data", *place, payload, frames, whole=False)

    def likely(self, scanner: Scanner, head: BlockHead, expected: int, most: int) -> bool:
        """Whether a damaged whole data block with this head begins where `scanner` stands.

        What follows in its place must be as it was written.
        """
        start = self._head(head.number)
        if not expected <= head.number <= expected + most or scanner.peek(0, len(start)) != start:
            return False
        at = len(start) + self._payload(head.number) + CRC.size
        return any(scanner.peek(at, len(wanted)) == wanted for wanted in self._starts(head.number + 1))

    def _agreement(self, scanner: Scanner, number: int) -> int:
        """How many bytes in the places of heads are right if this block begins here; -1 if too few are."""
        at = matched = compared = 0
        for place in range(number, number + AHEAD):
            starts = self._starts(place)
            if not starts or not scanner.peek(at, 1):
                break
            right = [same(scanner.peek(at, len(start)), start) for start in starts]
            best = max(range(len(starts)), key=right.__getitem__)
            matched, compared = matched + right[best], compared + len(starts[best])
            if place == number and (best or starts[0][0] == END):
                return -1
            if best or starts[0][0] == END:
                break
            at += len(self._head(place)) + self._payload(place) + CRC.size
        return matched if compared and 2 * matched >= compared else -1

    def _starts(self, number: int) -> list[bytes]:
        """How what is in the place of this block can begin: a data block, or the end block if there are so many.

        Of a file whose length is not known, a whole data block, a shorter one, or the end block.
        """
        end = bytes([END]) + to_varint(number)
        if self._frames is None:
            return [self._head(number), bytes([DATA | SHORT]) + to_varint(number), end]
        left = self._frames_of(number)
        return [self._head(number)] if left else [end] if number == -(-self._frames // self._block) else []

    @property
    def _block(self) -> int:
        return self._header.frames_per_block

    def _frames_of(self, number: int) -> int:
        """Frames of a data block, 0 if there is no such; of a file whose length is not known, all are whole."""
        if self._frames is None:
            return self._block
        return max(0, min(self._block, self._frames - number * self._block))

    def _payload(self, number: int) -> int:
        """Bytes of pair indices in a data block."""
        return plain_bytes(self._header, self._frames_of(number))

    def _head(self, number: int) -> bytes:
        """What stands before the pair indices of a data block."""
        frames, size = self._frames_of(number), self._payload(number)
        short = to_varint(frames) if frames < self._block else b""
        code = DATA | SHORT if short else DATA
        return bytes([code]) + to_varint(number) + to_varint(len(short) + size) + short


def same(there: bytes, wanted: bytes) -> int:
    """How many bytes are the same."""
    return sum(a == b for a, b in zip(there, wanted, strict=False))
