"""Other tags for a .q2d file, everything else byte for byte as it was. Imports no torch."""

from __future__ import annotations

import io

from q2d2cli.container.blocks import END, LAYOUT, METADATA, PARITY, RawBlock, Scanner, to_block
from q2d2cli.container.header import FormatError
from q2d2cli.container.parity import ParityWriter, parse
from q2d2cli.container.stream import Reader
from q2d2cli.container.tags import Tags


def read_tags(data: bytes) -> Reader:
    """A reader of a whole file that has been read to its end, so that its tags and what is wrong are known.

    Raises:
        FormatError: if it is damaged in anything but its tags, or of version 1, which has none.
    """
    reader = Reader(io.BytesIO(data))
    for _ in reader.blocks():
        pass
    if reader.header.version[0] == 1:
        raise FormatError("is of format version 1, which has no tags: decode it and encode it again")
    return reader


def with_tags(data: bytes, tags: Tags) -> bytes:
    """A .q2d file with these tags in place of its own; if it has parity, with as much of that made anew.

    Raises:
        FormatError: as `read_tags`, and if a file with parity has damaged blocks.
    """
    reader = read_tags(data)
    assert reader.audio_begin is not None
    new = [to_block(METADATA, number, payload) for number, payload in enumerate(tags.payloads())]
    header, audio = data[: reader.header_bytes], data[reader.audio_begin :]
    before = sound_blocks(data, reader, reader.header_bytes, reader.audio_begin)
    new += [data[block.offset : block.end] for block in before if block.code not in (PARITY, LAYOUT, METADATA)]
    if not reader.header.parity:
        return b"".join([header, *new, audio])
    behind = sound_blocks(data, reader, reader.audio_begin, len(data))
    if not behind or behind[-1].end != len(data):
        raise FormatError("is damaged: mend it with q2d2 repair first")
    windows = [found[0] for block in before + behind if block.code == PARITY and (found := parse(block.payload))]
    file = io.BytesIO()
    # Short windows have a little more than was asked for.
    share = min((facts.share for facts in windows), default=None)
    out = ParityWriter(file, share, with_layout=reader.header.payload == "coded")
    for part in (header, *new):
        out.put(part)
    for block in behind:
        part = data[block.offset : block.end]
        if block.kind == "data":
            out.put_data(block.number, part)
        elif block.code == END:
            out.put_end(part)
        elif block.code not in (PARITY, LAYOUT, METADATA):
            out.put(part)
    return file.getvalue()


def sound_blocks(data: bytes, reader: Reader, begin: int, end: int) -> list[RawBlock]:
    """The blocks between two places, up to the first that is damaged."""
    scanner, blocks = Scanner(io.BytesIO(data[begin:]), reader.header, begin), list[RawBlock]()
    while scanner.offset < end and isinstance(block := scanner.next(), RawBlock):
        blocks.append(block)
    return blocks
