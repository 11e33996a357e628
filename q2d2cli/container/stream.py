"""Blocks of a .q2d file, written and read one at a time (docs/format.md, "Blocks"). Imports no torch."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import BinaryIO

import numpy as np

from q2d2cli.container.header import FormatError, Header, read_header
from q2d2cli.container.packing import pack, payload_bytes, unpack

DATA, END = 0x01, 0x02
SKIPPABLE = 0x80
"""Block types from here on may be skipped by a reader that does not know them."""
BLOCK = struct.Struct("<III")
"""Type (low byte) and payload length (the other three), sequence number, CRC32."""
FRAMES = struct.Struct("<H")
SAMPLES = struct.Struct("<Q")


class Writer:
    """Writes pair indices as a .q2d file.

    Args:
        file: open for writing in binary; need not be seekable.
        header: goes first. If it does not know the number of samples and `file` is seekable, it is
            written again on `close`.

    Attributes:
        bytes_written: size of the file so far.
        payload_bytes: packed pair indices among them.
        frames: frames written per channel.
    """

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self.file, self.header = file, header
        self.bytes_written = self.payload_bytes = self.frames = 0
        self._sequence = 0
        self._pending = np.empty((header.channels, 0, header.quantizer.num_indices), np.int64)
        self._start = file.tell() if file.seekable() else None
        self._put(header.to_bytes())

    def write(self, indices: np.ndarray) -> None:
        """Append `(channels, frames, pairs)` pair indices.

        Raises:
            ValueError: if the shape or type is wrong or an index is out of range.
        """
        if not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(f"indices have type {indices.dtype}: expected integers")
        if indices.ndim != 3 or indices.shape[0] != self.header.channels:
            raise ValueError(f"indices have shape {indices.shape}: expected ({self.header.channels}, frames, pairs)")
        self._pending = np.concatenate([self._pending, indices], axis=1)
        size = self.header.frames_per_block
        while self._pending.shape[1] >= size:
            self._data(self._pending[:, :size])
            self._pending = self._pending[:, size:]

    def close(self, num_samples: int) -> None:
        """Write what is left and the end block with the number of samples per channel.

        Raises:
            ValueError: if the frames are not those of so many samples, or the header says
                another number and cannot be written again.
        """
        header = replace(self.header, num_samples=num_samples)
        if self._pending.shape[1]:
            self._data(self._pending)
        if self.frames != header.frames_for(num_samples):
            raise ValueError(f"{num_samples} samples take {header.frames_for(num_samples)} frames, not {self.frames}")
        if self._start is None and self.header.num_samples not in (None, num_samples):
            raise ValueError(f"the header, already written, says {self.header.num_samples} samples, not {num_samples}")
        self._block(END, SAMPLES.pack(num_samples))
        if self._start is not None and self.header.num_samples != num_samples:
            self.header = header
            end = self.file.tell()
            self.file.seek(self._start)
            self.file.write(self.header.to_bytes())
            self.file.seek(end)

    def _data(self, indices: np.ndarray) -> None:
        packed = b"".join(pack(channel, self.header.quantizer.sizes) for channel in indices)
        self.payload_bytes += len(packed)
        self.frames += indices.shape[1]
        self._block(DATA, FRAMES.pack(indices.shape[1]) + packed)

    def _block(self, kind: int, payload: bytes) -> None:
        if len(payload) >= 2**24:
            raise ValueError(f"a block of {len(payload)} bytes does not fit the format: use fewer frames per block")
        first = kind | len(payload) << 8
        crc = zlib.crc32(payload, zlib.crc32(struct.pack("<II", first, self._sequence)))
        self._put(BLOCK.pack(first, self._sequence, crc) + payload)
        self._sequence += 1

    def _put(self, data: bytes) -> None:
        self.file.write(data)
        self.bytes_written += len(data)


@dataclass(frozen=True)
class Block:
    """One checked data block."""

    frames: int
    payload: bytes
    """Packed pair indices, channel after channel."""


class Reader:
    """Reads a .q2d file block by block.

    Args:
        file: open for reading in binary, at the header; need not be seekable.

    Attributes:
        header: what the header says.
        num_samples: samples per channel; from the header, or from the end block once that is read.
        bytes_read: size of the file so far.
        payload_bytes: packed pair indices among them.
        frames: frames read per channel.

    Raises:
        FormatError: if the header is not that of a .q2d file this version can read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.header, self.bytes_read = read_header(file)
        self.num_samples = self.header.num_samples
        self.payload_bytes = self.frames = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.file.close()

    def blocks(self) -> Iterator[Block]:
        """Checked data blocks, up to and including a check of the end block.

        Raises:
            FormatError: on a truncated or damaged file; names the block and the time it starts at.
        """
        sequence, short = 0, False
        header = self.header
        while True:
            where = f"block {sequence}, {self.frames / header.frame_rate:.2f} s into the audio"
            head = self._read(BLOCK.size, where)
            first, number, crc = BLOCK.unpack(head)
            kind, length = first & 0xFF, first >> 8
            payload = self._read(length, where)
            if zlib.crc32(payload, zlib.crc32(head[:8])) != crc:
                raise FormatError(f"is damaged: the checksum of {where}, does not match")
            if number != sequence:
                raise FormatError(f"is damaged: {where}, carries number {number} (blocks lost or out of order)")
            sequence += 1
            if kind == END:
                self._end(payload)
                return
            if kind >= SKIPPABLE:
                continue
            if kind != DATA:
                raise FormatError(f"has a block of type {kind}, which this q2d2 does not know: upgrade q2d2")
            frames = FRAMES.unpack_from(payload)[0] if length >= FRAMES.size else 0
            expected = header.channels * payload_bytes(frames, header.quantizer.sizes)
            if short or not 1 <= frames <= header.frames_per_block or length != FRAMES.size + expected:
                raise FormatError(f"is damaged: {where}, has an impossible length")
            short = frames < header.frames_per_block
            self.frames += frames
            self.payload_bytes += expected
            yield Block(frames, payload[FRAMES.size :])

    def unpack(self, block: Block) -> np.ndarray:
        """Pair indices of a block, `(channels, frames, pairs)` int64.

        Raises:
            FormatError: if the payload is not one that `pack` writes.
        """
        sizes = self.header.quantizer.sizes
        size = payload_bytes(block.frames, sizes)
        parts = [block.payload[i : i + size] for i in range(0, len(block.payload), size)]
        return np.stack([unpack(part, block.frames, sizes) for part in parts])

    def _read(self, size: int, where: str) -> bytes:
        data = self.file.read(size)
        if len(data) < size:
            raise FormatError(f"is truncated: it ends inside {where}")
        self.bytes_read += size
        return data

    def _end(self, payload: bytes) -> None:
        if len(payload) < SAMPLES.size:
            raise FormatError("is damaged: its end block is too short")
        (samples,) = SAMPLES.unpack_from(payload)
        if self.header.num_samples not in (None, samples):
            raise FormatError(f"is damaged: header says {self.header.num_samples} samples, end block {samples}")
        if self.frames != self.header.frames_for(samples):
            raise FormatError(
                f"is damaged: its end block says {samples} samples, which {self.frames} frames do not hold"
            )
        if self.file.read(1):
            raise FormatError("is damaged: there are bytes after its end block")
        self.num_samples = samples
