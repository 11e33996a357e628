"""A .q2d file as a stream of pair indices, written and read block by block (docs/format.md). Imports no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import BinaryIO, Literal

import numpy as np

from q2d2cli.container.blocks import (
    DATA,
    END,
    METADATA,
    PARITY,
    PLAIN,
    SHORT,
    RawBlock,
    Scanner,
    Unsound,
    read_header,
    to_block,
)
from q2d2cli.container.header import MAX_PAYLOAD, FormatError, Header
from q2d2cli.container.parity import ParityWriter
from q2d2cli.container.payload import Packed, concealment, pack_blocks, plain_bytes, unpack_blocks
from q2d2cli.container.places import Places
from q2d2cli.container.seeking import find_block, samples_at_end
from q2d2cli.container.tags import Tags, TagsReader
from q2d2cli.container.varint import to_varint

MAX_LOST = 3600
"""Most blocks in a row that a file may lack; keeps a damaged number from becoming years of audio."""
LOST_INDICES = 2**18
"""Most pair indices that stand in for lost ones at a time; keeps memory flat."""


PACKED_TOGETHER = UNPACKED_TOGETHER = 64
"""Blocks that are entropy coded side by side in files; more are hardly faster."""
UNPACKED_INDICES = 2**20
"""Pair indices of such blocks, about; keeps memory flat."""


class Writer:
    """Writes pair indices as a .q2d file.

    Args:
        file: open for writing in binary; need not be seekable.
        header: goes first. If it does not know the number of samples and `file` is seekable, it is
            written again on `close`.
        batch: blocks that are packed together and then written; more than 1 is faster if they are entropy coded.
        parity: share of the file that may be lost in one stretch and be mended; None for no parity.
        tags: go behind the header.

    Attributes:
        bytes_written: size of the file so far.
        tag_bytes: blocks with tags among them.
        payload_bytes: packed pair indices among them.
        frames: frames written per channel.
    """

    def __init__(
        self, file: BinaryIO, header: Header, batch: int = 1, parity: float | None = None, tags: Tags | None = None
    ) -> None:
        header = replace(header, parity=parity is not None)
        self.file, self.header, self._parity = file, header, parity
        self.payload_bytes = self.frames = self.tag_bytes = 0
        self._batch, self._blocks = batch, 0
        self._pending = np.empty((header.channels, 0, header.quantizer.num_indices), np.int64)
        self._start = file.tell() if file.seekable() else None
        self._out = ParityWriter(file, parity, with_layout=header.payload == "coded")
        self._out.put(header.to_bytes(room=self._room()))
        for number, payload in enumerate(tags.payloads() if tags else ()):
            block = to_block(METADATA, number, payload)
            self._out.put(block)
            self.tag_bytes += len(block)

    @property
    def bytes_written(self) -> int:
        """Size of the file so far."""
        return self._out.bytes_written

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
        while self._pending.shape[1] >= size * self._batch:
            self._data(self._pending[:, : size * self._batch])
            self._pending = self._pending[:, size * self._batch :]

    def close(self, num_samples: int) -> None:
        """Write what is left and the end block with the number of samples per channel.

        Raises:
            ValueError: if the frames are not those of so many samples, or the header says
                another number and cannot be written again.
        """
        header = replace(self.header, num_samples=num_samples)
        self._data(self._pending)
        self._pending = self._pending[:, :0]
        if self.frames != header.frames_for(num_samples):
            raise ValueError(f"{num_samples} samples take {header.frames_for(num_samples)} frames, not {self.frames}")
        known = self.header.num_samples is not None
        if known and self.header.num_samples != num_samples:
            raise ValueError(f"the header, already written, says {self.header.num_samples} samples, not {num_samples}")
        self._out.put_end(to_block(END, self._blocks, b"" if known else to_varint(num_samples)))
        if self._room():
            assert self._start is not None
            self.header = header
            position = self.file.tell()
            self.file.seek(self._start)
            self.file.write(self.header.to_bytes(room=True))
            self.file.seek(position)

    def _room(self) -> bool:
        """Whether the header gets the number of samples later."""
        # Nothing that parity protects is changed later.
        return self._start is not None and self.header.num_samples is None and self._parity is None

    def _data(self, indices: np.ndarray) -> None:
        size = self.header.frames_per_block
        parts = [indices[:, begin : begin + size] for begin in range(0, indices.shape[1], size)]
        for packed in pack_blocks(self.header, parts):
            short = packed.frames < size
            code = DATA | (SHORT if short else 0) | (PLAIN if packed.plain else 0)
            start = to_varint(packed.frames) if short else b""
            self._out.put_data(self._blocks, to_block(code, self._blocks, start + packed.payload))
            self._blocks += 1
            self.payload_bytes += len(packed.payload)
            self.frames += packed.frames


@dataclass(frozen=True)
class Block:
    """One data block, or what stands in for lost ones."""

    first: int
    """Its first frame in the file."""
    frames: int
    packed: Packed
    """Its pair indices; without bytes if they are lost."""
    state: Literal["whole", "damaged", "lost"] = "whole"
    """Whether the checksum matched, did not, or the block is not there."""
    offset: int = 0
    """Where it begins in the file, bytes."""
    begin: int = 0
    """Where its packed pair indices begin, bytes."""
    end: int = 0
    """Where it ends, bytes."""


FaultKind = Literal["header", "damaged", "missing", "truncated", "foreign", "joined", "tags"]


@dataclass(frozen=True)
class Fault:
    """A stretch of the file that is not as it was written."""

    kind: FaultKind
    """A byte of the header that its checksum has mended; blocks with wrong bytes; blocks that are not there; all from
    here on is not there; bytes that do not belong here; another file begins here; tags that cannot be read."""
    offset: int
    """Where, bytes from the beginning of the file."""
    block: int
    """The first block concerned; data blocks are counted from 0."""
    blocks: int
    """How many; 0 if not known."""
    start: float
    """Where in the audio, seconds."""
    duration: float | None
    """How much audio, seconds; None if not known."""
    detail: str = ""
    """What is wrong with the tags."""

    def __str__(self) -> str:
        blocks = f"block {self.block}" if self.blocks < 2 else f"blocks {self.block} to {self.block + self.blocks - 1}"
        if self.kind == "header":
            return f"byte {self.offset}, in the header (known from its checksum)"
        if self.kind == "tags":
            return f"{self.detail} (at byte {self.offset}; no sound is lost)"
        if self.kind == "joined":
            return f"another .q2d file begins at byte {self.offset} (two files joined: cut it there)"
        if self.kind == "truncated":
            rest = f", {self.duration:.2f} s are missing" if self.duration else ""
            return f"truncated in {blocks} at byte {self.offset}, {self.start:.2f} s into the audio{rest}"
        if self.kind == "foreign" or not self.duration:
            return f"bytes at {self.offset} that do not belong there, before {blocks}"
        what = "with a wrong checksum" if self.kind == "damaged" else "lost"
        return f"{blocks} ({self.start:.2f} to {self.start + self.duration:.2f} s) {what}"


class Reader:
    """Reads a .q2d file block by block.

    Data blocks with a wrong checksum and missing data blocks are errors, but not in a robust
    file, nor when damage is to be concealed: there they are counted, and `unpack` makes the best of them.

    Args:
        file: open for reading in binary, at the header; need not be seekable.
        conceal: whether to go on after any damage, at the next sound block.

    Attributes:
        header: what the header says.
        num_samples: samples per channel; from the header, or from the end block once that is read.
            What there is of a truncated file, if damage is concealed.
        tags: complete when the first data block has been read; what could not be read of them is among the faults.
        audio_begin: where the audio begins behind the tags, bytes; None before that.
        bytes_read: size of the file so far.
        tag_bytes: blocks with tags among them.
        payload_bytes: packed pair indices among them.
        frames: frames read per channel, those of lost blocks among them.
        data_blocks: data blocks so far, those that are lost among them.
        damaged_blocks: data blocks whose checksum does not match.
        lost_blocks: data blocks that are missing.
        parity_blocks: blocks for repair.
        metadata_blocks: blocks with tags.
        other_blocks: blocks of other types, skipped; layout blocks among them.
        faults: everything that is wrong, in order.

    Raises:
        FormatError: if the header is not that of a .q2d file this version can read.
    """

    def __init__(self, file: BinaryIO, conceal: bool = False) -> None:
        self.file, self._conceal = file, conceal
        self._origin = file.tell() if file.seekable() else 0
        wrong: list[int] | None = [] if conceal else None
        self.header, self._begin = read_header(file, wrong)
        self.num_samples = self.header.num_samples
        self.payload_bytes = self.frames = self.data_blocks = self.damaged_blocks = self.lost_blocks = 0
        self.parity_blocks = self.metadata_blocks = self.other_blocks = self.tag_bytes = 0
        self.tags, self._tags = Tags(), TagsReader()
        self.audio_begin: int | None = None
        self._may_have_tags = self.header.version[0] > 1
        self._refused: FormatError | None = None
        self._skipped_frames = self._skipped_bytes = 0
        self.faults: list[Fault] = [Fault("header", at, 0, 0, 0.0, 0.0) for at in wrong or ()]
        self._scanner = Scanner(file, self.header, self._begin)
        self._gap: int | None = None
        self._filled = self._cut_off = 0
        robust = self.header.payload == "robust" and self.header.version[0] > 1
        self._places = Places(self.header) if robust and conceal else None

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.file.close()

    @property
    def header_bytes(self) -> int:
        """Size of the header."""
        return self._begin

    @property
    def bytes_read(self) -> int:
        """Size of the file so far."""
        return self._scanner.offset

    def length(self) -> int | None:
        """Samples per channel, from the end block if the header does not know it; None if that takes reading it all."""
        if self.num_samples is not None or not self.file.seekable():
            return self.num_samples
        position = self.file.tell()
        samples = samples_at_end(self.file, self.header, self._begin, self._origin)
        self.file.seek(position)
        return samples

    def seek(self, frame: int) -> None:
        """Let `blocks` begin with the block that holds this frame, or before; to be called first.

        Of a file that cannot be sought in, it begins at the start.
        """
        number = frame // self.header.frames_per_block
        if number and self.file.seekable():
            offset, number = find_block(self.file, self.header, self._lead(), number, self._origin)
            self.file.seek(self._origin + offset)
            self._scanner = Scanner(self.file, self.header, offset)
            self.data_blocks, self.frames = number, number * self.header.frames_per_block
            self._skipped_frames, self._skipped_bytes = self.frames, offset - self._begin - self.tag_bytes

    def rates(self) -> tuple[float, float]:
        """Bits per second of what was read, all channels: of everything but tags, and of the payload; 0 without audio.

        Lost blocks have no bytes and do not count: they would make the rates look low.
        """
        if not self.frames:
            return 0.0, 0.0
        seconds = self.frames / self.header.frame_rate
        if self.num_samples is not None:
            seconds = min(seconds, self.num_samples / self.header.original_rate)
        lost = self.lost_blocks * self.header.frames_per_block
        seconds *= max(0, self.frames - self._skipped_frames - lost) / self.frames
        if not seconds:
            return 0.0, 0.0
        return 8 * (self.bytes_read - self.tag_bytes - self._skipped_bytes) / seconds, 8 * self.payload_bytes / seconds

    def blocks(self) -> Iterator[Block]:
        """Checked data blocks, up to and including a check of the end block.

        Raises:
            FormatError: on a truncated or damaged file (a robust one: if more than the pair
                indices is damaged); names the block and the time it starts at. If damage is
                concealed, only if there is no making sense of it.
        """
        short = False
        while True:
            raw = self._next()
            if raw is None:
                return
            if raw.kind == "skipped":
                self._skip(raw)
                continue
            self._end_tags(raw.offset)
            number = raw.number
            if self.header.version[0] == 1:
                number -= self.parity_blocks + self.metadata_blocks + self.other_blocks
            lost = number - self.data_blocks
            refused, self._refused = self._refused, None
            if refused and lost:
                raise refused
            tolerant = self._conceal or self.header.payload == "robust"
            if lost and not (tolerant and 0 < lost <= MAX_LOST and not short):
                if not self._conceal or lost > MAX_LOST:
                    raise FormatError(f"is damaged: {self._where()}, carries number {number} (lost or out of order)")
                self._gap = None
                self._note("foreign", raw.offset, 0, 0)
                continue
            if raw.kind == "end":
                samples = self._samples(raw)
                yield from self._lost(raw.offset, lost, self.header.frames_for(samples) - self.frames)
                self._check_end(samples)
                return
            yield from self._lost(raw.offset, lost, lost * self.header.frames_per_block)
            if short:
                raise FormatError(f"is damaged: {self._where()}, has an impossible length")
            short = raw.frames < self.header.frames_per_block
            if not raw.whole:
                self._note("damaged", raw.offset, 1, raw.frames)
            first = self.frames
            self.frames += raw.frames
            self.data_blocks += 1
            self.payload_bytes += len(raw.payload)
            self.damaged_blocks += not raw.whole
            packed = Packed(raw.payload, raw.frames, raw.plain)
            state: Literal["whole", "damaged"] = "whole" if raw.whole else "damaged"
            yield Block(first, raw.frames, packed, state, raw.offset, raw.begin, raw.end)

    def unpack(self, block: Block) -> np.ndarray:
        """Pair indices of a block, `(channels, frames, pairs)` int64; of a lost one, what stands in for them.

        Raises:
            FormatError: if the payload is not one that a writer writes.
        """
        return self.unpack_all([block])[0]

    def unpack_all(self, blocks: Sequence[Block]) -> list[np.ndarray]:
        """`unpack` for several blocks, which is faster than one by one if they are entropy coded."""
        found = iter(unpack_blocks(self.header, [block.packed for block in blocks if block.state != "lost"]))
        return [concealment(self.header, b.frames) if b.state == "lost" else next(found) for b in blocks]

    def part(self, first: int, last: int | None) -> Iterator[Block]:
        """Checked data blocks that hold frames from `first` on and before `last` (None: up to the end)."""
        self.seek(first)
        for block in self.blocks():
            if block.first + block.frames > first:
                yield block
            if last is not None and self.frames >= last:
                return

    @property
    def lost_seconds(self) -> float:
        """How much audio is missing or unreadable, as far as is known; damaged blocks of a robust file are read."""
        return (self._filled + self._cut_off) / self.header.frame_rate

    @property
    def nothing_left(self) -> bool:
        """Whether there should be audio in what was read, and there is none."""
        lost = any(fault.kind in ("damaged", "missing", "truncated") for fault in self.faults)
        return lost and self._filled == self.frames - self._skipped_frames and self.header.num_samples != 0

    def unpacked(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, np.ndarray | None]]:
        """Blocks and their pair indices, several unpacked at a time where that is faster.

        Args:
            blocks: from `blocks` or `part`.

        Returns:
            The indices as of `unpack`; None where there are none and damage is to be concealed.

        Raises:
            FormatError: as `blocks` and `unpack`; what is before the error has been given then.
        """
        # From a pipe, blocks may come slowly, and whoever waits for them wants what there is.
        together = UNPACKED_TOGETHER if self.header.payload == "coded" and self.file.seekable() else 1
        waiting: list[Block] = []
        failure: FormatError | None = None
        try:
            for block in blocks:
                waiting.append(block)
                indices = sum(b.frames for b in waiting) * self.header.channels * self.header.quantizer.num_indices
                if len(waiting) >= together or indices > UNPACKED_INDICES:
                    ready, waiting = waiting, []
                    yield from self._unpack_each(ready)
        except FormatError as error:
            failure = error
        yield from self._unpack_each(waiting)
        if failure is not None:
            raise failure

    def _unpack_each(self, blocks: list[Block]) -> Iterator[tuple[Block, np.ndarray | None]]:
        """Together if they are sound, else one by one up to the one that is not."""
        found: list[np.ndarray] | None = None
        with contextlib.suppress(FormatError):
            found = self.unpack_all(blocks)
        for number, block in enumerate(blocks):
            indices = None
            if not (self._conceal and block.state == "lost"):
                try:
                    indices = self.unpack(block) if found is None else found[number]
                except FormatError:
                    if not self._conceal:
                        raise
            yield block, indices

    def _next(self) -> RawBlock | None:
        """The next block, a damaged one in a robust file, too; None at the end of what can be read."""
        while True:
            found = self._scanner.next()
            if isinstance(found, RawBlock):
                return found
            robust = self.header.payload == "robust"
            block = found.block if robust and found.block is not None and found.block.kind == "data" else None
            if self._places is not None and (block is None or block.number != self.data_blocks):
                block = self._places.here(self._scanner, self.data_blocks, MAX_LOST)
            if block is not None and 0 <= block.number - self.data_blocks <= MAX_LOST:
                self._scanner.take(block)
                return block
            if self._damaged_tags(found):
                continue
            if not self._conceal:
                error = self._error(found)
                if not self._between_tags(found):
                    raise error
                self._refused = error
                continue
            if self._gap is None:
                self._gap = found.offset
            if found.reason == "end" or self._scanner.other_file() or not self._search():
                self._cut()
                return None
            if self._scanner.other_file():
                self._note("joined", self._scanner.offset, 0, None)
                self._cut()
                return None

    def _skip(self, raw: RawBlock) -> None:
        """Count a block that holds no audio, and take its tags."""
        self.parity_blocks += raw.code == PARITY
        self.metadata_blocks += raw.code == METADATA
        self.other_blocks += raw.code not in (PARITY, METADATA)
        if raw.code == METADATA and self._may_have_tags:
            self.tag_bytes += raw.end - raw.offset
            if self.audio_begin is None:
                self._tags.add(raw.number, raw.payload)

    def _end_tags(self, offset: int) -> None:
        """The audio begins at this byte: what tags there are have been read."""
        if self.audio_begin is None:
            self.audio_begin = offset
            self.tags = self._tags.finish()
            if self._tags.problem:
                self.faults.append(Fault("tags", self._begin, 0, 0, 0.0, 0.0, self._tags.problem))

    def _lead(self) -> int:
        """Read the tags; returns where the audio begins, if it is sound there, or what is damaged."""
        while True:
            found = self._scanner.next()
            if isinstance(found, RawBlock) and found.kind == "skipped":
                self._skip(found)
            elif isinstance(found, RawBlock) or not self._damaged_tags(found):
                self._end_tags(found.offset)
                return found.offset

    def _damaged_tags(self, found: Unsound) -> bool:
        """Pass over a block of tags with a wrong checksum: it is no reason not to have the audio."""
        block = found.block
        if self.audio_begin is not None or block is None or block.code != METADATA or not self._may_have_tags:
            return False
        if not self._scanner.follows(block):
            return False
        self._tags.fail("tags with a wrong checksum")
        self._scanner.take(block)
        return True

    def _between_tags(self, found: Unsound) -> bool:
        """Go on behind damage before the first data block, where it may have hit nothing but tags.

        Whether so tells the number of the block that is found.
        """
        if self.audio_begin is not None or found.reason == "end" or not self._may_have_tags:
            return False
        if self._scanner.other_file() or not self._scanner.search() or self._scanner.other_file():
            return False
        self._gap = found.offset
        return True

    def _search(self) -> bool:
        """Go on at the next block that can be read."""
        places = self._places
        if places is None:
            return self._scanner.search()
        return self._scanner.search(
            good_enough=lambda head: places.likely(self._scanner, head, self.data_blocks, MAX_LOST)
        )

    def _error(self, found: Unsound) -> FormatError:
        """What to say about an unsound block."""
        if self._scanner.other_file():
            return FormatError(
                f"is damaged: it ends before {self._where()}, and another .q2d file begins at byte {found.offset} "
                "(were two files joined?)"
            )
        if found.reason in ("end", "truncated"):
            return FormatError(f"is truncated: it ends inside {self._where()}")
        if found.reason == "checksum":
            return FormatError(f"is damaged: the checksum of {self._where()}, does not match")
        return FormatError(f"is damaged: {self._where()}, has an impossible length")

    def _cut(self) -> None:
        """Take what has been read for the whole file."""
        self._end_tags(self._scanner.offset)
        header = self.header
        samples = self.frames * header.hop * header.original_rate // header.sample_rate
        rest = None if header.num_samples is None else max(0, header.frames_for(header.num_samples) - self.frames)
        self._cut_off = rest or 0
        self._note("truncated", self._scanner.offset if self._gap is None else self._gap, 0, rest)
        self.num_samples = samples if header.num_samples is None else min(samples, header.num_samples)

    def _where(self) -> str:
        return f"block {self.data_blocks}, {self.frames / self.header.frame_rate:.2f} s into the audio"

    def _note(
        self,
        kind: FaultKind,
        offset: int,
        blocks: int,
        frames: int | None,
    ) -> None:
        rate = self.header.frame_rate
        duration = None if frames is None else frames / rate
        self.faults.append(Fault(kind, offset, self.data_blocks, blocks, self.frames / rate, duration))

    def _lost(self, offset: int, blocks: int, frames: int) -> Iterator[Block]:
        """Stand-ins for missing blocks that hold so many frames in all."""
        frames = max(0, min(frames, blocks * self.header.frames_per_block))
        blocks = -(-frames // self.header.frames_per_block)
        gap, self._gap = self._gap, None
        if not blocks:
            if gap is not None:
                self._note("foreign", gap, 0, 0)
            return
        if plain_bytes(self.header, self.header.frames_per_block) > MAX_PAYLOAD:
            raise FormatError(f"is damaged: {self._where()}, is larger than a block can be")
        self._note("missing" if gap is None else "damaged", offset if gap is None else gap, blocks, frames)
        self.lost_blocks += blocks if gap is None else 0
        self.damaged_blocks += blocks if gap is not None else 0
        self.data_blocks += blocks
        self._filled += frames
        most = max(1, LOST_INDICES // (self.header.channels * self.header.quantizer.num_indices))
        while frames:
            size = min(frames, most)
            first = self.frames
            frames -= size
            self.frames += size
            yield Block(first, size, Packed(b"", size), "lost")

    def _samples(self, raw: RawBlock) -> int:
        """Samples per channel that header and end block name."""
        known = self.header.num_samples
        if raw.samples is None and known is None:
            raise FormatError("is damaged: neither its header nor its end block says how many samples there are")
        if None not in (raw.samples, known) and raw.samples != known:
            raise FormatError(f"is damaged: header says {known} samples, end block {raw.samples}")
        samples = known if raw.samples is None else raw.samples
        assert samples is not None
        return samples

    def _check_end(self, samples: int) -> None:
        if self.frames != self.header.frames_for(samples):
            raise FormatError(
                f"is damaged: its end block says {samples} samples, which {self.frames} frames do not hold"
            )
        self.num_samples = samples
        if self._scanner.at_end():
            return
        joined = self._scanner.other_file()
        if self._conceal:
            self._note("joined" if joined else "foreign", self._scanner.offset, 0, 0)
        elif joined:
            raise FormatError(
                f"is two files joined: another .q2d file begins at byte {self._scanner.offset}; cut it there"
            )
        else:
            raise FormatError("is damaged: there are bytes after its end block")
