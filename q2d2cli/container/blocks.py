"""Blocks of a .q2d file as bytes: their heads and checksums, and how to find the next sound one. Imports no torch."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple, Protocol

from q2d2cli.container import header as version2
from q2d2cli.container import version1
from q2d2cli.container.header import CRC, MAGIC, MAX_PAYLOAD, PREFIX, VERSION, FormatError, Header
from q2d2cli.container.payload import plain_bytes
from q2d2cli.container.varint import VarintError, from_varint, to_varint

DATA, END, PARITY, METADATA, LAYOUT = 0x10, 0x20, 0x81, 0x82, 0x83
"""Block types; a data block's may have the two flags below."""
SHORT, PLAIN = 0x01, 0x02
"""The payload begins with its number of frames; it is packed in a coded file."""
SKIPPABLE = 0x80
"""Block types from here on may be skipped by a reader that does not know them."""
MAX_PARITY = 4095
"""Bytes of a parity block's payload."""
MAX_METADATA = 32768
"""Bytes of a metadata block's payload."""
MAX_LAYOUT = 32768
"""Bytes of a layout block's payload."""
LONGEST_HEAD = 12
"""Bytes of the longest head of a block: type, number and length, or those of version 1."""
READ_AHEAD = 4096
"""Bytes that are read at a time in search of a sound block."""
CHECKED_PER_BYTE, CHECKED_AT_LEAST = 64, 2**26
"""How many bytes a search may put through a checksum; keeps what was made to look like heads from taking forever."""

OTHER_FORMATS = {
    b"RIFF": "a WAV file",
    b"fLaC": "a FLAC file",
    b"OggS": "an Ogg file",
    b"ID3": "an MP3 file",
    b"ECDC": "an EnCodec file",
    b"PK\x03\x04": "a zip archive",
    b"\x93NUMPY": "a NumPy file (DAC's .dac, perhaps)",
}

Kind = Literal["data", "end", "skipped"]


class BlockHead(NamedTuple):
    """What stands before a block's payload."""

    code: int
    """Block type."""
    number: int
    begin: int
    """Offset of the payload in the block."""
    length: int
    """Bytes of the payload."""
    size: int
    """Bytes of the block."""


@dataclass(frozen=True)
class RawBlock:
    """A block, its payload still packed."""

    kind: Kind
    code: int
    """Block type."""
    number: int
    offset: int
    """Where it begins, bytes from the beginning of the file."""
    begin: int
    """Where its packed pair indices begin."""
    end: int
    """Where it ends, its checksum included."""
    payload: bytes
    """Packed pair indices of a data block; else the whole payload."""
    frames: int = 0
    plain: bool = False
    """Whether a data block of a coded file is packed."""
    samples: int | None = None
    """Samples per channel that an end block names."""
    whole: bool = True
    """Whether its checksum matched."""


@dataclass(frozen=True)
class Unsound:
    """What stands where a block should begin."""

    offset: int
    reason: Literal["end", "truncated", "checksum", "length"]
    """The file ends here; it ends inside the block; the checksum is wrong; the head is none that a writer writes."""
    block: RawBlock | None = None
    """The block with the wrong checksum, if all else about it is right."""


class BlockVersion(Protocol):
    """How one version of the format writes blocks."""

    starts: re.Pattern[bytes]
    """Bytes that a data or end block can begin with, or another file."""
    least: int
    """Bytes of the shortest block."""

    def head(self, data: bytearray, at: int) -> BlockHead | None:
        """The head at offset `at`; None if none can begin so."""

    def possible(self, head: BlockHead) -> bool:
        """Whether a block of this file can have this head."""

    def sound(self, data: bytearray, at: int, head: BlockHead) -> bool:
        """Whether the block's checksum matches."""

    def block(self, data: bytes, head: BlockHead, offset: int, whole: bool) -> RawBlock | None:
        """The block that these bytes are; None if no writer writes such a block.

        Raises:
            FormatError: if it is whole, but of a type that this version does not know and must not skip.
        """


def read_head(data: bytearray, at: int) -> BlockHead | None:
    """The head of a block of version 2 at offset `at`; None if none can begin so."""
    try:
        number, begin = from_varint(data, at + 1)
        length, begin = from_varint(data, begin)
    except VarintError:
        return None
    if length > MAX_PAYLOAD or number >= 2**32:
        return None
    return BlockHead(data[at], number, begin - at, length, begin - at + length + CRC.size)


class BlockVersion2:
    """Blocks of version 2."""

    starts = re.compile(b"[" + bytes(range(DATA, DATA + 4)) + bytes([END, PARITY]) + b"]|" + re.escape(MAGIC))
    least = 3 + CRC.size

    def __init__(self, header: Header) -> None:
        self._header = header
        self._full = plain_bytes(header, header.frames_per_block)

    def head(self, data: bytearray, at: int) -> BlockHead | None:
        """See `BlockVersion`."""
        return read_head(data, at)

    def possible(self, head: BlockHead) -> bool:
        """See `BlockVersion`."""
        if head.code == END:
            return head.length <= 10
        if head.code == PARITY:
            return head.length <= MAX_PARITY
        if head.code == METADATA:
            return head.length <= MAX_METADATA
        if head.code == LAYOUT:
            return head.length <= MAX_LAYOUT
        if head.code & ~(PLAIN | SHORT) != DATA:
            return True
        if head.code & SHORT or (self._header.payload == "coded" and not head.code & PLAIN):
            return head.length <= self._full + 3
        return head.length == self._full

    def sound(self, data: bytearray, at: int, head: BlockHead) -> bool:
        """See `BlockVersion`."""
        with memoryview(data) as view:
            end = at + head.size - CRC.size
            return zlib.crc32(view[at:end]) == CRC.unpack_from(view, end)[0]

    def block(self, data: bytes, head: BlockHead, offset: int, whole: bool) -> RawBlock | None:
        """See `BlockVersion`."""
        payload = data[head.begin : head.begin + head.length]
        begin = offset + head.begin
        place = (head.code, head.number, offset)
        if head.code >= SKIPPABLE:
            return RawBlock("skipped", *place, begin, offset + head.size, payload, whole=whole)
        if head.code != END and not DATA <= head.code < DATA + 4:
            refuse_unknown(head.code, whole)
            return None
        try:
            if head.code == END:
                samples = from_varint(payload, 0)[0] if payload else None
                return RawBlock("end", *place, begin, offset + head.size, payload, samples=samples, whole=whole)
            frames, skip = from_varint(payload, 0) if head.code & SHORT else (self._header.frames_per_block, 0)
        except VarintError:
            return None
        coded, plain = self._header.payload == "coded", bool(head.code & PLAIN)
        if not 1 <= frames <= self._header.frames_per_block or (plain and not coded):
            return None
        payload, size = payload[skip:], plain_bytes(self._header, frames)
        if len(payload) > size or (len(payload) < size and (plain or not coded)):
            return None
        return RawBlock("data", *place, begin + skip, offset + head.size, payload, frames, plain, whole=whole)


class BlockVersion1:
    """Blocks of version 1."""

    starts = re.compile(b"[" + bytes([version1.DATA, version1.END]) + b"]|" + re.escape(MAGIC))
    least = version1.BLOCK.size

    def __init__(self, header: Header) -> None:
        self._header = header
        self._full = version1.FRAMES.size + plain_bytes(header, header.frames_per_block)

    def head(self, data: bytearray, at: int) -> BlockHead | None:
        """See `BlockVersion`."""
        if len(data) < at + version1.BLOCK.size:
            return None
        first, number, _ = version1.BLOCK.unpack_from(data, at)
        return BlockHead(first & 0xFF, number, version1.BLOCK.size, first >> 8, version1.BLOCK.size + (first >> 8))

    def possible(self, head: BlockHead) -> bool:
        """See `BlockVersion`."""
        if head.code == version1.END:
            return version1.SAMPLES.size <= head.length < 256
        return head.code != version1.DATA or head.length <= self._full

    def sound(self, data: bytearray, at: int, head: BlockHead) -> bool:
        """See `BlockVersion`."""
        with memoryview(data) as view:
            crc = zlib.crc32(view[at + head.begin : at + head.size], zlib.crc32(view[at : at + 8]))
        return crc == version1.BLOCK.unpack_from(data, at)[2]

    def block(self, data: bytes, head: BlockHead, offset: int, whole: bool) -> RawBlock | None:
        """See `BlockVersion`."""
        payload, begin = data[head.begin :], offset + head.begin
        place = (head.code, head.number, offset)
        if head.code >= SKIPPABLE:
            return RawBlock("skipped", *place, begin, offset + head.size, payload, whole=whole)
        if head.code == version1.END:
            (samples,) = version1.SAMPLES.unpack_from(payload)
            return RawBlock("end", *place, begin, offset + head.size, payload, samples=samples, whole=whole)
        if head.code != version1.DATA:
            refuse_unknown(head.code, whole)
            return None
        skip = version1.FRAMES.size
        frames = version1.FRAMES.unpack_from(payload)[0] if len(payload) >= skip else 0
        if not 1 <= frames <= self._header.frames_per_block or len(payload) != skip + plain_bytes(self._header, frames):
            return None
        return RawBlock("data", *place, begin + skip, offset + head.size, payload[skip:], frames, whole=whole)


def refuse_unknown(code: int, whole: bool) -> None:
    """Raise FormatError if a block of this type is whole, and therefore one of a later version."""
    if whole:
        raise FormatError(f"has a block of type {code}, which this q2d2 does not know: upgrade q2d2")


class Scanner:
    """Reads a file's blocks one after the other, from a pipe, too, and no further than each one needs.

    Args:
        file: open for reading in binary, at a block.
        header: of the file.
        offset: where `file` stands, bytes from the beginning of the .q2d file.
    """

    def __init__(self, file: BinaryIO, header: Header, offset: int) -> None:
        self._file = file
        self._version: BlockVersion = BlockVersion1(header) if header.version[0] == 1 else BlockVersion2(header)
        self._data, self._at, self._base = bytearray(), 0, offset

    @property
    def offset(self) -> int:
        """Where the next block should begin, bytes from the beginning of the file."""
        return self._base + self._at

    def next(self) -> RawBlock | Unsound:
        """The next block; one that is unsound is not passed over (`take` and `search` do that).

        Raises:
            FormatError: if it is sound but none that this version knows.
        """
        if self._at > READ_AHEAD:
            del self._data[: self._at]
            self._base, self._at = self._base + self._at, 0
        if not self._need(1):
            return Unsound(self.offset, "end")
        enough = self._need(self._version.least)
        head = self._version.head(self._data, self._at)
        while enough and head is None and len(self._data) - self._at < LONGEST_HEAD:
            enough = self._need(len(self._data) - self._at + 1)
            head = self._version.head(self._data, self._at)
        if not enough:
            return Unsound(self.offset, "truncated")
        if head is None or not self._version.possible(head):
            return Unsound(self.offset, "length")
        if not self._need(head.size):
            return Unsound(self.offset, "truncated")
        whole = self._version.sound(self._data, self._at, head)
        data = bytes(self._data[self._at : self._at + head.size])
        block = self._version.block(data, head, self.offset, whole)
        if block is None or not whole:
            return Unsound(self.offset, "length" if whole else "checksum", block)
        self._at += head.size
        return block

    def take(self, block: RawBlock) -> None:
        """Go on behind `block`, which `next` gave as unsound."""
        self._at = block.end - self._base

    def follows(self, block: RawBlock) -> bool:
        """Whether a sound block stands behind `block`, which `next` gave as unsound."""
        at, self._at = self._at, block.end - self._base
        try:
            self._need(LONGEST_HEAD)
            head = self._version.head(self._data, self._at)
            if head is None or not self._version.possible(head) or not self._need(head.size):
                return False
            return self._version.sound(self._data, self._at, head)
        finally:
            self._at = at

    def peek(self, at: int, size: int) -> bytes:
        """So many bytes from `at` bytes behind here on; fewer if the file ends before."""
        self._need(at + size)
        return bytes(self._data[self._at + at : self._at + at + size])

    def search(self, here: bool = False, good_enough: Callable[[BlockHead], bool] | None = None) -> bool:
        """Go on at the next sound block, or where another file begins; False: at the end, there is none.

        Args:
            here: whether it may begin here, and not only behind.
            good_enough: called with the head of a block that is not sound, the scanner standing there: whether to
                stop there, too.
        """
        checked = 0
        begin = self.offset
        self._at -= here
        while True:
            self._at += 1
            found = self._version.starts.search(self._data, self._at)
            # A magic may be cut in two by the end of what has been read.
            self._at = found.start() if found else max(self._at, len(self._data) - len(MAGIC))
            if not found:
                if not self._more():
                    self._at = len(self._data)
                    return False
                self._at -= 1
                continue
            if self.other_file():
                return True
            self._need(LONGEST_HEAD)
            head = self._version.head(self._data, self._at)
            if head is None or not self._version.possible(head) or not self._need(head.size):
                continue
            checked += head.size
            if checked > CHECKED_AT_LEAST + CHECKED_PER_BYTE * (self.offset - begin):
                raise FormatError(f"is damaged beyond reading, from byte {begin} on")
            if self._version.sound(self._data, self._at, head) or (good_enough is not None and good_enough(head)):
                return True
            if self._at > 2**20:
                del self._data[: self._at]
                self._base, self._at = self._base + self._at, 0

    def other_file(self) -> bool:
        """Whether another .q2d file begins here."""
        return self._need(len(MAGIC)) and self._data.startswith(MAGIC, self._at)

    def at_end(self) -> bool:
        """Whether the file ends here."""
        return not self._need(1)

    def _need(self, size: int) -> bool:
        """Read until there are `size` bytes from here on; whether there are."""
        while (missing := self._at + size - len(self._data)) > 0:
            more = self._file.read(missing)
            if not more:
                return False
            self._data += more
        return True

    def _more(self) -> bool:
        """Read some more bytes; whether there were any."""
        more = self._file.read(READ_AHEAD)
        self._data += more
        return bool(more)


def read_header(file: BinaryIO, mended: list[int] | None = None) -> tuple[Header, int]:
    """Read a header and leave `file` at the first block; returns it and its length in bytes.

    Args:
        file: open for reading in binary.
        mended: gets the offset of a byte that was wrong and is known from the checksum; None: that is an error.

    Raises:
        FormatError: if this is not a .q2d file, a newer version, truncated or damaged.
    """
    prefix = file.read(PREFIX.size)
    if not prefix:
        raise FormatError("is empty: not a .q2d file")
    if not MAGIC.startswith(prefix[: len(MAGIC)]):
        raise FormatError(describe_foreign(prefix))
    if len(prefix) < PREFIX.size:
        raise FormatError("is truncated: it ends inside the header")
    _, major, minor = PREFIX.unpack(prefix)
    if major == 1:
        return version1.read_rest(file, prefix)
    if major == VERSION[0]:
        return version2.read_rest(file, prefix, mended)
    raise FormatError(
        f"has format version {major}.{minor}, and this q2d2 reads versions 1 and {VERSION[0]}: upgrade q2d2"
    )


def describe_foreign(start: bytes) -> str:
    """What a file without the magic probably is."""
    if start.startswith(b"\x89Q2D"):
        return "was damaged in transfer (line endings were changed): copy it again in binary mode"
    for magic, name in OTHER_FORMATS.items():
        if start.startswith(magic):
            return f"is not a .q2d file: it looks like {name}"
    return "is not a .q2d file"


def to_block(code: int, number: int, payload: bytes) -> bytes:
    """A block of version 2.

    Raises:
        ValueError: if the payload is too large.
    """
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a block of {len(payload)} bytes does not fit the format: use fewer frames per block")
    data = bytes([code]) + to_varint(number) + to_varint(len(payload)) + payload
    return data + CRC.pack(zlib.crc32(data))
