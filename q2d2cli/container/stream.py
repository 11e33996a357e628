"""Blocks of a .q2d file, written and read one at a time (docs/format.md, "Blocks"). Imports no torch."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import BinaryIO, Literal

import numpy as np

from q2d2cli.container.header import FormatError, Header, read_header
from q2d2cli.container.payload import channel_bytes, concealment, from_payload, to_payload

DATA, END = 0x01, 0x02
SKIPPABLE = 0x80
"""Block types from here on may be skipped by a reader that does not know them."""
BLOCK = struct.Struct("<III")
"""Type (low byte) and payload length (the other three), sequence number, CRC32."""
FRAMES = struct.Struct("<H")
SAMPLES = struct.Struct("<Q")
MAX_LOST = 3600
"""Most blocks in a row that a robust file may lack; keeps a damaged sequence number from becoming years of audio."""


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
        packed = to_payload(self.header, indices)
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
    """One data block."""

    frames: int
    payload: bytes
    """Packed pair indices, channel after channel."""
    state: Literal["whole", "damaged", "lost"] = "whole"
    """Whether the checksum matched, did not, or the block is not there (in robust files only)."""


class Reader:
    """Reads a .q2d file block by block.

    Data blocks with a wrong checksum and missing data blocks are errors, but not in a robust
    file: there they are counted, and `unpack` makes the best of them.

    Args:
        file: open for reading in binary, at the header; need not be seekable.

    Attributes:
        header: what the header says.
        num_samples: samples per channel; from the header, or from the end block once that is read.
        bytes_read: size of the file so far.
        payload_bytes: packed pair indices among them.
        frames: frames read per channel, those of lost blocks among them.
        damaged_blocks: data blocks whose checksum does not match.
        lost_blocks: data blocks that are missing.

    Raises:
        FormatError: if the header is not that of a .q2d file this version can read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.header, self.bytes_read = read_header(file)
        self.num_samples = self.header.num_samples
        self.payload_bytes = self.frames = self.damaged_blocks = self.lost_blocks = 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.file.close()

    def blocks(self) -> Iterator[Block]:
        """Checked data blocks, up to and including a check of the end block.

        Raises:
            FormatError: on a truncated or damaged file (a robust one: if more than the pair
                indices is damaged); names the block and the time it starts at.
        """
        sequence, short = 0, False
        header = self.header
        robust = header.payload == "robust"
        while True:
            where = f"block {sequence}, {self.frames / header.frame_rate:.2f} s into the audio"
            head = self._read(BLOCK.size, where)
            first, number, crc = BLOCK.unpack(head)
            kind, length = first & 0xFF, first >> 8
            payload = self._read(length, where)
            whole = zlib.crc32(payload, zlib.crc32(head[:8])) == crc
            if not whole and not (robust and kind == DATA):
                raise FormatError(f"is damaged: the checksum of {where}, does not match")
            lost = number - sequence
            if lost and not (robust and 0 < lost <= MAX_LOST and not short):
                raise FormatError(f"is damaged: {where}, carries number {number} (blocks lost or out of order)")
            sequence = number + 1
            if kind == END:
                samples = self._end(payload)
                yield from self._lost(lost, header.frames_for(samples) - self.frames)
                self._check_end(samples)
                return
            yield from self._lost(lost, lost * header.frames_per_block)
            if kind >= SKIPPABLE:
                continue
            if kind != DATA:
                raise FormatError(f"has a block of type {kind}, which this q2d2 does not know: upgrade q2d2")
            frames = FRAMES.unpack_from(payload)[0] if length >= FRAMES.size else 0
            expected = header.channels * channel_bytes(header, frames)
            if short or not 1 <= frames <= header.frames_per_block or length != FRAMES.size + expected:
                raise FormatError(f"is damaged: {where}, has an impossible length")
            short = frames < header.frames_per_block
            self.frames += frames
            self.payload_bytes += expected
            self.damaged_blocks += not whole
            yield Block(frames, payload[FRAMES.size :], "whole" if whole else "damaged")

    def unpack(self, block: Block) -> np.ndarray:
        """Pair indices of a block, `(channels, frames, pairs)` int64; of a lost one, what stands in for them.

        Raises:
            FormatError: if the payload is not one that a writer writes.
        """
        if block.state == "lost":
            return concealment(self.header, block.frames)
        return from_payload(self.header, block.payload, block.frames)

    def _lost(self, blocks: int, frames: int) -> Iterator[Block]:
        """Stand-ins for missing blocks that hold so many frames in all."""
        for _ in range(blocks):
            size = min(frames, self.header.frames_per_block)
            if size < 1:
                return
            frames -= size
            self.frames += size
            self.lost_blocks += 1
            yield Block(size, b"", "lost")

    def _read(self, size: int, where: str) -> bytes:
        data = self.file.read(size)
        if len(data) < size:
            raise FormatError(f"is truncated: it ends inside {where}")
        self.bytes_read += size
        return data

    def _end(self, payload: bytes) -> int:
        """Samples per channel that the end block names."""
        if len(payload) < SAMPLES.size:
            raise FormatError("is damaged: its end block is too short")
        (samples,) = SAMPLES.unpack_from(payload)
        if self.header.num_samples not in (None, samples):
            raise FormatError(f"is damaged: header says {self.header.num_samples} samples, end block {samples}")
        return samples

    def _check_end(self, samples: int) -> None:
        if self.frames != self.header.frames_for(samples):
            raise FormatError(
                f"is damaged: its end block says {samples} samples, which {self.frames} frames do not hold"
            )
        if self.file.read(1):
            raise FormatError("is damaged: there are bytes after its end block")
        self.num_samples = samples
