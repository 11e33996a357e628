"""Mending a damaged .q2d file by its parity blocks, as a stream. Imports no torch."""

from __future__ import annotations

import io
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, cast

from q2d2cli.container import layout
from q2d2cli.container.blocks import (
    DATA,
    END,
    LAYOUT,
    LONGEST_HEAD,
    MAX_PARITY,
    METADATA,
    PARITY,
    PLAIN,
    SHORT,
    BlockHead,
    read_head,
    to_block,
)
from q2d2cli.container.header import CRC, MAGIC, PREFIX, VERSION, FormatError, Header
from q2d2cli.container.parity import (
    MAX_WINDOW,
    PIECE_BYTES,
    Facts,
    block_sizes,
    blocks_of,
    consistent,
    correct,
    describe_window,
    parity_of,
    parse,
)
from q2d2cli.container.stream import Reader
from q2d2cli.container.varint import VarintError, from_varint, to_varint

STARTS = re.compile(b"[" + bytes([*range(DATA, DATA + 4), END, PARITY, LAYOUT]) + b"]")
LONGEST = 65536
"""Bytes of the longest block that is looked for behind damage."""
AROUND = 30.0
"""Seconds beside a part of a file that decoding it may take, at most."""
SOUND_VOTES = 2**20
"""Votes of a parity block whose checksum matches, on what its window is; a damaged one has one."""
MOST_VOTERS = 32
OVERLAP = 3
"""Bytes that the end of a window and its parity can have in common by chance."""
CHECKS = 4
"""Codewords that must agree on where damage lies before all are corrected."""


Part = tuple[float, float | None]
"""Start and duration of what is wanted, seconds; None: up to the end."""


HEADER = -1
"""In place of a block type: this is the file's header."""


class BlockInWindow(NamedTuple):
    """Sound bytes of a window."""

    code: int
    """Block type, or `HEADER`."""
    number: int
    begin: int
    """Where they begin among what arrived of the window."""
    end: int

    @property
    def is_data(self) -> bool:
        """Whether it is a data block."""
        return kind_of(self.code) == DATA


def kind_of(code: int) -> int:
    """A block type without its flags."""
    return DATA if code & ~(PLAIN | SHORT) == DATA else code


Placed = list[tuple[int, BlockInWindow]]
"""Where in a window sound pieces belong."""


@dataclass
class ParityWindow:
    """What arrived of a window and its parity."""

    number: int
    first: int = 0
    """Number of its first data block."""
    data: bytearray = field(default_factory=bytearray)
    pieces: list[BlockInWindow] = field(default_factory=list)
    facts: Facts | None = None
    parity: dict[int, bytes] = field(default_factory=dict)
    """Parity bytes by their offset."""
    unsure: dict[int, bytes] = field(default_factory=dict)
    """Those of blocks whose checksum did not match."""
    before: int = 0
    """Bytes of the parity blocks that should stand between the window and the first one that is sound."""
    damaged: bool = False

    @property
    def begin(self) -> int:
        """Where its first piece begins if nothing is missing before that; -1: the header is."""
        return -1 if self.number == 0 and not any(piece.code == HEADER for piece in self.pieces) else 0

    @property
    def total(self) -> int:
        """Bytes that should have arrived before the first sound parity block."""
        return (self.facts.length if self.facts else 0) + self.before


class Mender:
    """Reads a file and gives its bytes, mended where its parity allows that.

    From a pipe, sound bytes are passed on as they come, and wait for the window's parity from damage on. Of other
    files every window waits, so that blocks are found again, too, whose loss leaves no trace before the parity: the
    last of the tags.

    Args:
        file: open for reading in binary, at the header.

    Attributes:
        mended: bytes of the file, as it was written, that did not arrive in sound blocks and were found again.
        windows: windows with parity so far.
        facts: of the longest of them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._patient = file, file.seekable()
        self._data, self._at = bytearray(), 0
        self.mended = self.windows = 0
        self._next = {DATA: 0, METADATA: 0}
        self.facts: Facts | None = None

    def announced(self) -> bool:
        """Whether the file says that it has parity, or its beginning is damaged and it may; to be called first."""
        if not self._header():
            return self._data[: len(MAGIC) + 1] != MAGIC + b"\1"
        return self._data[from_varint(self._data, PREFIX.size)[1]] >= 0x80

    def stream(self) -> Iterator[bytes]:
        """The file's bytes in pieces; if it has no parity, only the first ones (then `file` has the rest)."""
        window, sent = ParityWindow(0), 0
        if not self.announced():
            yield bytes(self._data)
            return
        header = self._header()
        if header:
            window.pieces.append(BlockInWindow(HEADER, 0, 0, header))
            self._move(window, header)
        else:
            window.damaged = True
        while True:
            if not (window.damaged or self._patient) and sent < len(window.data):
                yield bytes(window.data[sent:])
                sent = len(window.data)
            head = self._sound()
            if len(window.data) - sent > MAX_WINDOW or (head is None and not self._need(1)):
                break
            if head is None and self._overlap(window):
                continue
            if head is None:
                unsound = self._unsound_parity(window)
                if unsound is not None:
                    yield from self._parity(window, window.number, unsound, sent)
                    window, sent = ParityWindow(window.number + 1, self._next[DATA]), 0
                    continue
                window.damaged = True
                self._move(window, self._search(window))
                continue
            code, number, begin, _, size = head
            if code == PARITY:
                found = parse(bytes(self._data[self._at + begin : self._at + size - CRC.size]))
                if found is not None:
                    yield from self._parity(window, number, found, sent)
                    window, sent = ParityWindow(window.number + 1, self._next[DATA]), 0
                    continue
            # Blocks may be gone without a trace but for their numbers.
            window.damaged |= self._count(head, self._at)
            window.pieces.append(BlockInWindow(code, number, len(window.data), len(window.data) + size))
            self._move(window, size)
        yield bytes(window.data[sent:]) + bytes(self._data[self._at :])
        self._data.clear()
        self._at = 0

    def _parity(self, window: ParityWindow, number: int, first: tuple[Facts, int, bytes], sent: int) -> Iterator[bytes]:
        """Read a window's parity blocks from the first sound one on, and give the rest of the window and them."""
        facts, position = self._vote(number, *first[:2]), first[1]
        window.facts = facts
        window.before = sum(size for at, size, _ in block_sizes(facts, number) if at < position)
        raw = bytearray()
        sizes = {at: (size, start) for at, size, start in block_sizes(facts, number)}
        while position < facts.parity_bytes:
            head = self._sound()
            if head is None:
                if not self._need(1):
                    break
                size, start = sizes.get(position, (0, 0))
                if size and self._in_place(facts, number, position):
                    window.unsure[position] = bytes(self._data[self._at + start : self._at + size - CRC.size])
                    position += len(window.unsure[position])
                    raw += self._data[self._at : self._at + size]
                    self._at += size
                    continue
                skipped = self._search()
                raw += self._data[self._at : self._at + skipped]
                self._at += skipped
                continue
            code, found_number, begin, _, size = head
            payload = bytes(self._data[self._at + begin : self._at + size - CRC.size])
            found = parse(payload) if code == PARITY else None
            if found is None or found[0] != facts or found_number != number:
                break
            window.parity[found[1]] = found[2]
            position = found[1] + len(found[2])
            raw += self._data[self._at : self._at + size]
            self._at += size
        self.windows += 1
        self.facts = facts if self.facts is None else max(self.facts, facts, key=lambda known: known.length)
        whole = b"".join(window.parity.get(n, b"") for n in range(0, facts.parity_bytes, PIECE_BYTES))
        complete = len(whole) == facts.parity_bytes
        untouched = not window.damaged and len(window.data) == window.total == facts.length
        if untouched and (window.parity or agrees(bytes(window.data), window)):
            data = bytes(window.data)
        else:
            found_again = mend(window)
            if found_again is None:
                yield bytes(window.data[sent:]) + bytes(raw)
                return
            data, lost = found_again
            if not data.startswith(window.data[:sent]):
                # Blocks were gone without a trace, and what is behind them has been given already.
                yield bytes(window.data[sent:]) + bytes(raw)
                return
            self.mended += max(1, lost)
            heads = heads_of(data, number) or ()
            self._next |= {kind_of(h.code): h.number + 1 for h in heads if kind_of(h.code) in self._next}
        fixed = b"".join(blocks_of(facts, number, whole if complete else parity_of(data, facts)))
        self.mended += 0 if complete else facts.parity_bytes
        yield data[sent:] + fixed
        if facts.end:
            head = self._sound()
            if not window.parity and head is not None and head.code == END:
                return  # what damaged parity says of it may be damaged, too
            yield self._finish(facts.end + CRC.pack(zlib.crc32(facts.end)))

    def _count(self, head: BlockHead, at: int) -> bool:
        """Note which data and metadata block should come behind the block at `at`; whether some are gone before it."""
        kind, here, behind = kind_of(head.code), head.number, head.number + 1
        if kind == LAYOUT:
            # It tells how many data blocks stand before it.
            begins = layout.parse(bytes(self._data[at + head.begin : at + head.size - CRC.size]), MAX_WINDOW)
            kind, here = DATA, self._next[DATA] if begins is None else head.number + len(begins) - 1
            behind = here
        if kind not in self._next:
            return False
        gone, self._next[kind] = here != self._next[kind], behind
        return gone

    def _overlap(self, window: ParityWindow) -> bool:
        """Go back to a sound parity block whose first bytes were taken for the last ones of the window.

        Bytes can be gone between the two that are the same: then the window is whole.
        """
        for back in range(1, min(OVERLAP, self._at, len(window.data)) + 1):
            self._at -= back
            if self._data[self._at] == PARITY:
                head = self._sound()
                if head is not None and head.number == window.number:
                    return True
            self._at += back
        return False

    def _unsound_parity(self, window: ParityWindow) -> tuple[Facts, int, bytes] | None:
        """What the damaged parity block of the window says that begins here; None unless all about it fits."""
        if not self._need(LONGEST_HEAD):
            return None
        head = read_head(self._data, self._at)
        if head is None or head.code != PARITY or head.number != window.number or head.length > MAX_PARITY:
            return None
        self._need(head.size)
        found = parse(bytes(self._data[self._at + head.begin : self._at + head.size - CRC.size]))
        if (
            found is None
            or found[1] % PIECE_BYTES
            or len(found[2]) != min(PIECE_BYTES, found[0].parity_bytes - found[1])
        ):
            return None
        before = sum(size for at, size, _ in block_sizes(found[0], window.number) if at < found[1])
        return found if len(window.data) == found[0].length + before else None

    def _vote(self, number: int, facts: Facts, position: int) -> Facts:
        """What most of the parity blocks from here on say of the window; `facts` are those of the first."""
        sizes = {offset: size for offset, size, _ in block_sizes(facts, number)}
        at, votes = 0, Counter[Facts]()
        for _ in range(MOST_VOTERS):
            head = read_head(self._data, self._at + at) if self._need(at + LONGEST_HEAD) else None
            found = None
            if head is not None and head.code == PARITY and head.length <= MAX_PARITY and self._need(at + head.size):
                data = bytes(self._data[self._at + at : self._at + at + head.size])
                found = parse(data[head.begin : -CRC.size])
                if found is not None:
                    whole = zlib.crc32(data[: -CRC.size]) == CRC.unpack(data[-CRC.size :])[0]
                    votes[found[0]] += SOUND_VOTES if whole else 1
                    position, at = found[1] + len(found[2]), at + head.size
            if found is None:
                if position not in sizes:
                    break
                position, at = position + PIECE_BYTES, at + sizes[position]
        return votes.most_common(1)[0][0] if votes else facts

    def _in_place(self, facts: Facts, number: int, position: int) -> bool:
        """Whether the parity block for this offset stands here: more than half of its head is right."""
        piece = bytes(min(PIECE_BYTES, facts.parity_bytes - position))
        block = to_block(PARITY, number, describe_window(facts, position) + piece)
        wanted = block[: len(block) - len(piece) - CRC.size]
        if not self._need(len(block)):
            return False
        there = self._data[self._at : self._at + len(wanted)]
        return 2 * sum(a == b for a, b in zip(there, wanted, strict=True)) > len(wanted)

    def _finish(self, end: bytes) -> bytes:
        """The end block, whatever stands in its place, and what follows it."""
        self._need(len(end))
        arrived = bytes(self._data[self._at : self._at + len(end)])
        if arrived != end:
            self.mended += len(end)
            # Cut off, changed in its place, or gone.
            found = self._data.find(end, self._at)
            self._at = found if found >= 0 else self._at + len(arrived)
            if found < 0:
                return end
        self._at += len(end)
        return end

    def _header(self) -> int:
        """Bytes of the header, 0 if it is damaged or of another version."""
        if not self._need(PREFIX.size + 1) or PREFIX.unpack_from(self._data)[:2] != (MAGIC, VERSION[0]):
            return 0
        try:
            self._need(PREFIX.size + 3)
            length, begin = from_varint(self._data, PREFIX.size)
        except VarintError:
            return 0
        end = begin + length
        if length > LONGEST or not self._need(end + CRC.size):
            return 0
        return end + CRC.size if zlib.crc32(self._data[:end]) == CRC.unpack_from(self._data, end)[0] else 0

    def _sound(self) -> BlockHead | None:
        """The head of the block that begins here, if that is sound."""
        self._need(12)
        head = read_head(self._data, self._at)
        if head is None or head.size > LONGEST + CRC.size or not self._need(head.size):
            return None
        end = self._at + head.size - CRC.size
        with memoryview(self._data) as view:
            whole = zlib.crc32(view[self._at : end]) == CRC.unpack_from(view, end)[0]
        return head if whole else None

    def _search(self, window: ParityWindow | None = None) -> int:
        """Bytes up to the next sound block, or the end; with a window, or up to its parity if that is damaged, too."""
        start = self._at
        try:
            while True:
                found = STARTS.search(self._data, self._at + 1)
                if found is None:
                    self._at = len(self._data)
                    if not self._more(4096):
                        return self._at - start
                    self._at -= 1
                    continue
                self._at = found.start()
                if self._sound() or (window is not None and self._parity_behind(window, self._at - start)):
                    return self._at - start
        finally:
            self._at = start

    def _parity_behind(self, window: ParityWindow, skipped: int) -> bool:
        """Whether damaged parity of the window begins here, so many bytes behind what is in the window."""
        if self._data[self._at] != PARITY:
            return False
        begin = self._at - skipped
        probe = ParityWindow(window.number, data=window.data + self._data[begin : self._at])
        return self._unsound_parity(probe) is not None

    def _move(self, window: ParityWindow, size: int) -> None:
        """Take so many bytes into the window."""
        window.data += self._data[self._at : self._at + size]
        self._at += size
        if self._at > 2**16:
            del self._data[: self._at]
            self._at = 0

    def _need(self, size: int) -> bool:
        missing = self._at + size - len(self._data)
        return missing <= 0 or self._more(missing)

    def _more(self, size: int) -> bool:
        """Read so many bytes; whether there were as many."""
        while size > 0:
            more = self._file.read(size)
            if not more:
                return False
            self._data += more
            size -= len(more)
        return True


def mend(window: ParityWindow) -> tuple[bytes, int] | None:
    """The bytes of a window as they were written, and how many had not arrived; None if they cannot be known."""
    tried = list[Placed]()
    for placed in placements(window):
        if placed in tried:
            continue
        data = mend_around(window, placed)
        if data:
            return data, sum(end - begin for begin, end in runs(known_bytes(len(data), placed)))
        tried.append(placed)
    return None


def placements(window: ParityWindow) -> Iterator[Placed]:
    """Where the sound pieces may belong, the likeliest first."""
    yield from listed(window)
    yield place(window)
    yield place(window, from_end=True)
    yield from two_gaps(window)


def listed(window: ParityWindow) -> Iterator[Placed]:
    """Where the sound pieces belong by the layout blocks of the window, if one is sound."""
    facts = window.facts
    assert facts is not None
    layouts = [piece for piece in window.pieces if piece.code == LAYOUT]
    if not layouts:
        return
    block = bytes(window.data[layouts[-1].begin : layouts[-1].end])
    head = read_head(bytearray(block), 0)
    assert head is not None
    begins = layout.parse(block[head.begin : -CRC.size], facts.length)
    if begins is None:
        return
    *data_begins, end = begins
    # They are alike: one tells what all of them were.
    result = [(at, layouts[-1]) for at in range(end, facts.length - len(block) + 1, len(block))]
    numbers = Counter[int]()
    at = window.begin
    for piece in window.pieces:
        if piece.is_data and 0 <= piece.number - head.number < len(data_begins):
            result.append((data_begins[piece.number - head.number], piece))
        elif piece.begin == at and piece.code != LAYOUT and piece.number == numbers[piece.code]:
            # The header, and the tags as far as none is missing.
            result.append((at, piece))
            numbers[piece.code] += 1
            at = piece.end
    yield fitting(result, facts)


def two_gaps(window: ParityWindow) -> Iterator[Placed]:
    """Where the sound pieces belong if blocks are gone in two places: how much in which, a few codewords tell."""
    facts = window.facts
    assert facts is not None
    parity = b"".join(window.parity.get(at, b"") for at in range(0, facts.parity_bytes, PIECE_BYTES))
    gone, expected, at = window.total - len(window.data), window.first, window.begin
    stretches: list[list[BlockInWindow]] = [[]]
    for piece in window.pieces:
        if piece.begin != at or (piece.is_data and piece.number != expected):
            stretches.append([])
        stretches[-1].append(piece)
        at, expected = piece.end, piece.number + 1 if piece.is_data else expected
    if len(stretches) == 2:
        stretches.append([])  # what is gone at the end leaves no trace
    if len(stretches) != 3 or len(parity) < facts.parity_bytes or not 2 <= gone <= facts.parity_bytes:
        return
    first = stretches[0][-1].end if stretches[0] else 0
    last = stretches[1][-1].end
    behind = stretches[2][0].begin if stretches[2] else len(window.data)
    if (stretches[1][0].begin, behind) != (first, last):
        return
    data = bytes(window.data[: facts.length])
    for size in range(1, gone):
        guess = (data[:first] + bytes(size) + data[first:last] + bytes(gone - size) + data[last:])[: facts.length]
        gaps = [(first, first + size), (last + size, last + gone)]
        if consistent(guess, parity, facts, gaps, CHECKS):
            shifts = zip(stretches, (0, size, gone), strict=True)
            placed = [(piece.begin + shift, piece) for part, shift in shifts for piece in part]
            yield fitting(placed, facts)


def mend_around(window: ParityWindow, placed: Placed) -> bytes | None:
    """What `mend` gives, if the sound pieces belong where `placed` says."""
    facts = window.facts
    assert facts is not None
    parity, lost, unsure = bytearray(facts.parity_bytes), list[tuple[int, int]](), list[tuple[int, int]]()
    for at in range(0, facts.parity_bytes, PIECE_BYTES):
        arrived, end = window.parity.get(at, b""), min(at + PIECE_BYTES, facts.parity_bytes)
        if len(arrived) == end - at:
            parity[at:end] = arrived
            continue
        parity[at:end] = window.unsure.get(at, bytes(end - at))
        (lost if at not in window.unsure else unsure).append((facts.length + at, facts.length + end))
    guess = bytearray(facts.length)
    for at, piece in placed:
        guess[at : at + piece.end - piece.begin] = window.data[piece.begin : piece.end]
    gaps = runs(known_bytes(facts.length, placed))

    def attempt(data: bytes, erased: list[tuple[int, int]]) -> bytes | None:
        # Damaged parity blocks are mostly right if bytes are wrong here and there, and wrong if a stretch is.
        for also in ([], unsure) if unsure else ([],):
            fixed = correct(data, bytes(parity), facts, erased + lost + also)
            if fixed is not None:
                kept = all(fixed[at : at + p.end - p.begin] == window.data[p.begin : p.end] for at, p in placed)
                if kept and heads_of(fixed, window.number) is not None:
                    return fixed
        return None

    if sum(end - begin for begin, end in gaps) + sum(b - a for a, b in lost) <= facts.parity_bytes:
        fixed = attempt(bytes(guess), gaps)
        if fixed is not None:
            return fixed
    if not gaps:
        return None
    # What arrived in the gaps: from the front, and from the back.
    front, back = bytearray(guess), bytearray(guess)
    last = len(window.data) - window.total
    for begin, end in gaps:
        shift_front = next((p.end - begin for at, p in placed if at + p.end - p.begin == begin), 0)
        shift_back = next((p.begin - end for at, p in placed if at == end), last)
        copy(front, window.data, begin, end, shift_front)
        copy(back, window.data, begin, end, shift_back)
    if not last:
        fixed = attempt(bytes(front), [])
        if fixed is not None:
            return fixed
    # One stretch, as long as can be mended, somewhere in the damage: what is before it is right, and what is behind.
    first, stop = gaps[0][0], gaps[-1][1]
    length = (facts.symbols - 1) * facts.depth
    for begin in range(first - first % facts.depth, max(first, stop - length) + facts.depth, facts.depth):
        end = min(begin + length, facts.length)
        data = bytes(front[:begin]) + bytes(end - begin) + bytes(back[end:])
        erased = [(max(0, begin), end)]
        if not consistent(data, bytes(parity), facts, erased + lost + unsure, CHECKS):
            continue
        fixed = attempt(data, erased)
        if fixed is not None:
            return fixed
    return None


def agrees(data: bytes, window: ParityWindow) -> bool:
    """Whether damaged parity blocks are, by more than half, those of such a window."""
    assert window.facts is not None
    parity = parity_of(data, window.facts)
    pairs = [(parity[at + i], byte) for at, piece in window.unsure.items() for i, byte in enumerate(piece)]
    return 2 * sum(a == b for a, b in pairs) > len(pairs)


def copy(target: bytearray, source: bytearray, begin: int, end: int, shift: int) -> None:
    """Put `source[begin + shift : end + shift]`, as far as there is such, at `begin`."""
    low, high = max(begin, -shift), min(end, len(source) - shift)
    if low < high:
        target[low:high] = source[low + shift : high + shift]


def place(window: ParityWindow, from_end: bool = False) -> Placed:
    """Where in the window its sound pieces belong, in order.

    Args:
        window: has its facts.
        from_end: whether those behind damage are counted from the end, although blocks have one size: so it is right if
            tags are among what is lost.
    """
    facts = window.facts
    assert facts is not None
    arrived, total = len(window.data), window.total
    if arrived == total:
        return [(piece.begin, piece) for piece in window.pieces if piece.end <= facts.length]
    result = Placed()
    at, expected = window.begin, window.first
    for piece in window.pieces:
        if piece.begin != at or (piece.is_data and piece.number != expected):
            break
        result.append((at, piece))
        at, expected = piece.end, expected + piece.is_data
    rest = [piece for piece in window.pieces[len(result) :] if piece.is_data]
    sizes = {p.end - p.begin - len(to_varint(p.number)) for p in window.pieces if p.code in (DATA, DATA | PLAIN)}
    if len(sizes) == 1 and (result or window.number) and not from_end:
        # All whole blocks have one size: their numbers tell where they belong.
        size = sizes.pop()
        for piece in rest:
            distance = sum(size + len(to_varint(n)) for n in range(expected, min(piece.number, expected + total)))
            result.append((at + distance, piece))
        return fitting(result, facts)
    behind = window.pieces[len(result) :] if from_end else list(rest)
    # Parity blocks that should stand before the first sound one may be gone, too, or be damaged.
    end = next((end for end in (arrived, arrived - window.before) if behind and behind[-1].end == end), -1)
    at, shift, first = end, facts.length - end, None
    while behind and behind[-1].end == at:
        piece = behind[-1]
        if piece.is_data and first is not None and piece.number != first.number - 1:
            break
        behind.pop()
        at, first = piece.begin, piece if piece.is_data else first
        result.append((at + shift, piece))
    if len(sizes) == 1 and first is not None:
        # The same backwards from the first of them.
        size, at = sizes.pop(), first.begin + shift
        for piece in behind:
            if piece.is_data and first.number - total < piece.number < first.number:
                distance = sum(size + len(to_varint(n)) for n in range(piece.number, first.number))
                result.append((at - distance, piece))
    return fitting(result, facts)


def fitting(placed: Placed, facts: Facts) -> Placed:
    """The pieces that lie in the window, in order."""
    return sorted((at, p) for at, p in placed if at >= 0 and at + p.end - p.begin <= facts.length)


def known_bytes(length: int, placed: Placed) -> bytearray:
    """For each byte of a window 1 if it arrived in one of the sound pieces, else 0."""
    known = bytearray(length)
    for at, piece in placed:
        known[at : at + piece.end - piece.begin] = b"\1" * (piece.end - piece.begin)
    return known


def runs(known: bytearray) -> list[tuple[int, int]]:
    """Stretches of zeros."""
    return [(found.start(), found.end()) for found in re.finditer(b"\0+", known)]


def heads_of(window: bytes, number: int) -> list[BlockHead] | None:
    """Heads of a window's blocks, the first one behind the header; None if it is not sound from end to end."""
    mender, heads = Mender(io.BytesIO(window)), list[BlockHead]()
    at = mender._header() if number == 0 else 0
    if number == 0 and not at:
        return None
    mender._at = at
    while mender._need(1):
        head = mender._sound()
        if head is None:
            return None
        mender._at += head.size
        heads.append(head)
    return heads


class Mended(io.RawIOBase):
    """A mended file as one to read from, which cannot be sought in."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.mender = file, Mender(file)
        self._pieces, self._rest = self.mender.stream(), b""

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is not."""
        return False

    def read(self, size: int = -1) -> bytes:
        """So many bytes; fewer only at the end, all if negative."""
        parts, missing = [], size if size >= 0 else 2**62
        while missing > 0:
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    parts.append(self.file.read(missing) if size >= 0 else self.file.read())
                    break
                self._rest = piece
                continue
            parts.append(self._rest[:missing])
            self._rest = self._rest[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)

    def close(self) -> None:
        """Close the file, too."""
        self.file.close()
        super().close()


def mended(file: BinaryIO, part: Callable[[Header], Part] | None = None) -> BinaryIO:
    """`file`, mended as it is read if it has parity; if not, and it can be sought in, itself.

    Args:
        file: open for reading in binary, at the header.
        part: says what is wanted of a file with this header; None: all. If the file can be sought in and the part is
            whole, there is nothing to mend and the file is given itself. Mending begins at the header.
    """
    if file.seekable():
        begin = file.tell()
        needed = Mender(file).announced()
        file.seek(begin)
        if needed and part is not None:
            needed = not is_whole(file, part)
            file.seek(begin)
        if not needed:
            return file
    return cast(BinaryIO, Mended(file))


def is_whole(file: BinaryIO, part: Callable[[Header], Part]) -> bool:
    """Whether what a part takes, with `AROUND` on either side, is whole."""
    try:
        reader = Reader(file)
        start, duration = part(reader.header)
        rate = reader.header.frame_rate
        last = None if duration is None else math.ceil((start + duration + AROUND) * rate)
        for _ in reader.part(max(0, int((start - AROUND) * rate)), last):
            pass
    except FormatError:
        return False
    return not reader.faults
