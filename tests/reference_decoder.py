"""A second decoder of .q2d files, written from docs/format.md and docs/entropy-coding.md alone: slow and plain."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any


def bits(numbers: int) -> int:
    return (numbers - 1).bit_length()


def split(levels: list[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(levels[i : i + size]) for i in range(0, len(levels), size)]


def sizes_of(kind: int, levels: list[int]) -> list[int]:
    if kind >= 6:
        return [len(lattice_of(kind, group)) for group in split(levels, LATTICES[kind])]
    if kind >= 3:
        return levels
    pairs = list(zip(levels[::2], levels[1::2], strict=True))
    return [[a * b, a * b + (a - 1) * (b - 1), a * a][kind] for a, b in pairs]


def group_size(codebook: int) -> int:
    if bits(codebook) > 128:
        return 1
    candidates = [k for k in range(1, 129) if bits(codebook**k) <= 128]
    return min(candidates, key=lambda k: (bits(codebook**k) / k, k))


def packed_bytes(frames: int, sizes: list[int]) -> int:
    codebook = math.prod(sizes)
    group = group_size(codebook)
    return -(-(frames // group * bits(codebook**group) + bits(codebook ** (frames % group))) // 8)


def unpack(data: bytes, frames: int, sizes: list[int]) -> list[list[int]]:
    stream = int.from_bytes(data, "little")
    codebook = math.prod(sizes)
    group = group_size(codebook)
    result: list[list[int]] = []
    while len(result) < frames:
        count = min(group, frames - len(result))
        width = bits(codebook**count)
        number, stream = stream & ((1 << width) - 1), stream >> width
        for _ in range(count):
            frame = []
            for size in sizes:
                number, index = divmod(number, size)
                frame.append(index)
            result.append(frame)
        assert number == 0, "number outside the codebook"
    assert stream == 0, "padding"
    return result


Labelling = tuple[list[int], list[int], list[int]]
"""Codes of the indices, indices of the codes, and the index nearest the origin in a list of one."""


LATTICES = {6: 3, 7: 4, 8: 8}
"""Dimensions of the lattices, by kind."""


@cache
def lattice_of(kind: int, levels: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Four times the coordinates of the points."""
    points: list[tuple[int, ...]] = []
    for less in (0, 1):
        for place in product(*(range(level - less) for level in levels)):
            if kind < 8 or sum(place) % 2 == sum(level // 2 for level in levels) % 2:
                points.append(tuple(4 * k - 2 * (level - less - 1) for k, level in zip(place, levels, strict=True)))
    return points


def points_of(kind: int, levels: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Four times the coordinates of the points."""
    if kind in LATTICES:
        return lattice_of(kind, levels)
    a, b = levels[0], levels[-1]
    if kind == 3:
        return [(4 * (i - a // 2), 0) for i in range(a)]
    if kind == 2:
        rows = [(i // a, i % a) for i in range(a * a)]
        return [(4 * x - 2 * (a - 1) + (-1 if y % 2 else 1), 4 * y - 2 * (a - 1)) for y, x in rows]
    points: list[tuple[int, ...]] = [(4 * (i // b) - 2 * (a - 1), 4 * (i % b) - 2 * (b - 1)) for i in range(a * b)]
    if kind == 1:
        cells = range((a - 1) * (b - 1))
        points += [(4 * (k // (b - 1)) - 2 * (a - 2), 4 * (k % (b - 1)) - 2 * (b - 2)) for k in cells]
    return points


@cache
def labelling(kind: int, levels: tuple[int, ...]) -> Labelling:
    if kind in (4, 5):
        a = levels[0]
        width = bits(a)
        return list(range(a)), [c if c < a else c - 2 ** (width - 1) for c in range(2**width)], [0]
    points = points_of(kind, levels)
    width = bits(len(points))
    table, written = [0] * 2**width, [0] * 2**width

    def halve(part: list[int], code: int, left: int) -> None:
        if len(part) == 1:
            table[code : code + 2**left] = part * 2**left
            written[code] = 1
            return
        sides = [max(values) - min(values) for values in zip(*(points[i] for i in part), strict=True)]
        longest = sides.index(max(sides))
        part = sorted(part, key=lambda i: (points[i][longest], points[i]))
        middle = (len(part) + 1) // 2
        halve(part[:middle], code, left - 1)
        halve(part[middle:], code + 2 ** (left - 1), left - 1)

    halve(list(range(len(points))), 0, width)
    if width <= 8:
        distance = [[sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) for q in points] for p in points]
        near = [[c ^ 1 << bit for bit in range(width)] for c in range(2**width)]

        def around(c: int) -> int:
            row = distance[table[c]]
            return sum((written[c] + written[k]) * row[table[k]] for k in near[c])

        def swap(c: int, k: int) -> None:
            table[c], table[k], written[c], written[k] = table[k], table[c], written[k], written[c]

        swapped = True
        while swapped:
            swapped = False
            before = [around(c) for c in range(2**width)]
            for c in range(2**width):
                changes = []
                for k in range(2**width):
                    swap(c, k)
                    changes.append(around(c) + around(k) - before[c] - before[k])
                    swap(c, k)
                k = min(range(2**width), key=changes.__getitem__)
                if changes[k] < 0:
                    swap(c, k)
                    swapped = True
                    for moved in {c, k, *near[c], *near[k]}:
                        before[moved] = around(moved)
        for c in range(2**width):
            known = [table[k] for k in near[c] if written[k]]
            if not written[c] and known:
                table[c] = min(range(len(points)), key=lambda i: sum(distance[i][k] for k in known))
    codes = [next(c for c in range(2**width) if written[c] and table[c] == i) for i in range(len(points))]
    return codes, table, [min(range(len(points)), key=lambda i: sum(x * x for x in points[i]))]


def labellings(kind: int, levels: list[int]) -> list[Labelling]:
    size = LATTICES.get(kind, 1 if kind >= 3 else 2)
    return [labelling(kind, group) for group in split(levels, size)]


def unpack_fields(data: bytes, frames: int, tables: list[Labelling]) -> list[list[int]]:
    stream = int.from_bytes(data, "little")
    result = []
    for _ in range(frames):
        frame = []
        for _, table, _ in tables:
            stream, code = divmod(stream, len(table))
            frame.append(table[code])
        result.append(frame)
    return result


Rows = list[list[int]]


class Context:
    """A context model file: safetensors, read byte by byte."""

    def __init__(self, data: bytes) -> None:
        size = int.from_bytes(data[:8], "little")
        entries = json.loads(data[8 : 8 + size])
        facts = entries.pop("__metadata__")
        assert facts["format"] == "q2d2 context model 1"
        self.kind, self.fingerprint = facts["kind"], hashlib.sha256(data).digest()[:8].hex()
        self.tensors: dict[str, Rows] = {}
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            code = {"I8": "b", "I32": "i", "U16": "H"}[entry["dtype"]]
            width = entry["shape"][-1]
            values = struct.unpack(f"<{math.prod(entry['shape'])}{code}", data[8 + size + begin : 8 + size + end])
            self.tensors[name] = [list(values[i : i + width]) for i in range(0, len(values), width)]

    def __getitem__(self, name: str) -> Rows:
        return self.tensors[name]

    def state(self) -> Recurrent | Tables:
        return Recurrent(self) if self.kind == "recurrent" else Tables(self)


def product_of(row: Sequence[int], matrix: Rows) -> list[int]:
    return [sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*matrix, strict=True)]


def clip(x: int, low: int, high: int) -> int:
    return max(low, min(high, x))


@cache
def power(k: int) -> int:
    """The largest whole number whose 64th power is not above `2**(1024 - k)`."""
    low, high = 0, 2**17
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**64 <= 2 ** (1024 - k) else (low, middle)
    return low


class Recurrent:
    """The recurrent network's state for one channel of a block."""

    def __init__(self, model: Context) -> None:
        self.model = model
        self.pairs = range(sum(name.startswith("out.") for name in model.tensors))
        self.h = [0] * len(model["recurrent"])
        self.before = [len(model[f"embedding.{j}"]) - 1 for j in self.pairs]
        self.now: list[int] = []

    def counts(self, j: int) -> list[int]:
        t = self.model
        if j == 0:
            m = [b + x for b, x in zip(t["recurrent_bias"][0], product_of(self.h, t["recurrent"]), strict=True)]
            for i, index in enumerate(self.before):
                m = [
                    x + 32 * y for x, y in zip(m, product_of(t[f"embedding.{i}"][index], t[f"input.{i}"]), strict=True)
                ]
            units = len(self.h)
            gates = [clip((x >> 11) + 128, 0, 256) for x in m[:units]]
            changes = [clip(x >> 7, -1024, 1024) for x in m[units:]]
            self.h = [h + ((g * (c - h) + 128) >> 8) for h, g, c in zip(self.h, gates, changes, strict=True)]
        a = [b + x for b, x in zip(t[f"hidden_bias.{j}"][0], product_of(self.h, t[f"hidden.{j}"]), strict=True)]
        for k, index in enumerate(self.now):
            a = [
                x + 32 * y for x, y in zip(a, product_of(t[f"embedding.{k}"][index], t[f"within.{j}.{k}"]), strict=True)
            ]
        logits = product_of([clip(x >> 9, 0, 256) for x in a], t[f"out.{j}"])
        logits = [x + b for x, b in zip(logits, t[f"out_bias.{j}"][0], strict=True)]
        return [power(min((max(logits) - logit) >> 6, 1024)) for logit in logits]

    def take(self, index: int) -> None:
        self.now.append(index)
        if len(self.now) == len(self.pairs):
            self.before, self.now = self.now, []


class Tables:
    """The state of tables of counts for one channel of a block."""

    def __init__(self, model: Context) -> None:
        self.model, self.step = model, model["step"][0][0]
        pairs = range(len(model.tensors) - 1)
        self.before = [len(model[f"table.{j}"]) - 1 for j in pairs]
        self.added = [[0] * size for size in self.before]
        self.pair = 0

    def counts(self, j: int) -> list[int]:
        return [x + y for x, y in zip(self.model[f"table.{j}"][self.before[j]], self.added[j], strict=True)]

    def take(self, index: int) -> None:
        added = self.added[self.pair]
        added[index] += self.step
        if sum(added) > 2**15:
            added[:] = [x // 2 for x in added]
        self.before[self.pair] = index
        self.pair = (self.pair + 1) % len(self.before)


def decode_coded(data: bytes, frames: int, channels: int, model: Context, pairs: int) -> list[Rows]:
    """`[channel][frame][pair]` of an entropy-coded block."""
    at = 0

    def word() -> int:
        nonlocal at
        at += 4
        return int.from_bytes(data[at - 4 : at].ljust(4, b"\0"), "big")

    code, span = word() << 32 | word(), 2**64 - 1
    states = [model.state() for _ in range(channels)]
    result: list[Rows] = [[[] for _ in range(frames)] for _ in range(channels)]
    for frame in range(frames):
        for pair in range(pairs):
            for state, rows in zip(states, result, strict=True):
                counts = state.counts(pair)
                unit = span // sum(counts)
                place = min(code // unit, sum(counts) - 1)
                start = index = 0
                while place >= start + counts[index]:
                    start += counts[index]
                    index += 1
                code, span = code - start * unit, counts[index] * unit
                if span < 2**32:
                    code, span = code << 32 | word(), span << 32
                state.take(index)
                rows[frame].append(index)
    assert len(data) <= at, "bytes behind the last word"
    assert not data.endswith(b"\0"), "a zero byte at the end"
    return result


KINDS = ["rectangular", "rhombic", "hexagonal", "fsq", "vq", "rvq", "body-centred", "d4", "e8"]
RATES = [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000]


class Bytes:
    """Takes a file apart from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        self.at += size
        assert self.at <= len(self.data), "truncated"
        return self.data[self.at - size : self.at]

    def u8(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        number, shift = 0, 0
        while True:
            byte = self.u8()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number


def header_1(source: Bytes) -> dict[str, Any]:
    data = source.data
    (length,) = struct.unpack_from("<H", data, 10)
    source.at = length
    kind, mode, dim, name_length = struct.unpack_from("<BBBB", data, 12)
    assert data[9] >= mode in (0, 1)
    hop, channels, rate, original, samples, block_frames = struct.unpack_from("<HHIIQH", data, 16)
    return {
        "kind": KINDS[kind],
        "levels": list(struct.unpack_from(f"<{dim}H", data, 46)),
        "payload": ["packed", "robust"][mode],
        "hop": hop,
        "sample_rate": rate,
        "model": data[46 + 2 * dim : 46 + 2 * dim + name_length].decode(),
        "fingerprint": data[38:46].hex(),
        "original_rate": original,
        "channels": channels,
        "num_samples": None if samples == 2**64 - 1 else samples,
        "frames_per_block": block_frames,
    }


def header_2(source: Bytes) -> dict[str, Any]:
    end = source.varint()
    end += source.at
    first = source.u8()
    dim, levels = source.varint(), list[int]()
    while len(levels) < dim:
        level = source.varint()
        levels += [level] * source.varint()
    assert len(levels) == dim
    hop, channels, codes = source.varint(), source.varint(), source.u8()
    rate = RATES[codes % 16 - 1] if codes % 16 else source.varint()
    original = RATES[codes // 16 - 1] if codes // 16 else source.varint()
    block_frames, samples = source.varint(), source.varint()
    fingerprint = source.take(8).hex()
    name = source.take(source.varint()).decode()
    context = {"context": source.take(8).hex()} if first // 16 % 8 == 2 else {}
    source.at = end + 4
    return {
        "kind": KINDS[first % 16],
        "levels": levels,
        "payload": ["packed", "robust", "coded"][first // 16 % 8],
        "hop": hop,
        "sample_rate": rate,
        "model": name,
        "fingerprint": fingerprint,
        "original_rate": original,
        "channels": channels,
        "num_samples": samples - 1 if samples else None,
        "frames_per_block": block_frames,
        **context,
    }


Raw = tuple[str, int, bool, bytes]
"""Kind of block, its number, whether its checksum is right, its payload; of a data block with `F` in front."""


def block_1(source: Bytes) -> Raw:
    head = source.take(12)
    first, number, crc = struct.unpack("<III", head)
    payload = source.take(first // 256)
    kind = {1: "data", 2: "end"}[first % 256]
    return kind, number, zlib.crc32(head[:8] + payload) == crc, payload


def block_2(source: Bytes) -> Raw:
    start = source.at
    code, number, size = source.u8(), source.varint(), source.varint()
    payload = source.take(size)
    whole = zlib.crc32(source.data[start : source.at]) == struct.unpack("<I", source.take(4))[0]
    names = {0x10: "data", 0x11: "short", 0x12: "plain", 0x13: "short plain", 0x20: "end"}
    return names[code] if code < 128 else "skipped", number, whole, payload


def decode(data: bytes, contexts: Sequence[bytes] = ()) -> dict[str, Any]:
    """Header fields, and `indices[channel][frame][pair]`; of robust files also the counts of bad blocks.

    Args:
        data: the file.
        contexts: files of context models, one of which a coded file names.
    """
    source = Bytes(data)
    assert source.take(8) == b"\x89Q2D\r\n\x1a\n"
    major, minor = source.u8(), source.u8()
    assert major in (1, 2)
    facts = header_1(source) if major == 1 else header_2(source)
    assert zlib.crc32(data[: source.at - 4]) == struct.unpack_from("<I", data, source.at - 4)[0]
    kind, levels, robust = KINDS.index(facts["kind"]), facts["levels"], facts["payload"] == "robust"
    sizes = sizes_of(kind, levels)
    tables = labellings(kind, levels) if robust else []
    coded = facts["payload"] == "coded"
    model = next(m for m in map(Context, contexts) if m.fingerprint == facts["context"]) if coded else None
    indices: list[list[list[int]]] = [[] for _ in range(facts["channels"])]
    expected = damaged = lost = 0
    while True:
        what, number, whole, payload = (block_1 if major == 1 else block_2)(source)
        assert whole or (robust and what in ("data", "short"))
        if what == "skipped":
            continue
        damaged += not whole
        assert number == expected or (robust and expected < number <= expected + 3600)
        missing = (number - expected) * facts["frames_per_block"]
        if what == "end":
            total = facts["num_samples"]
            if payload:
                total = struct.unpack_from("<Q", payload)[0] if major == 1 else Bytes(payload).varint()
            assert facts["num_samples"] in (None, total)
            facts["num_samples"] = total
            whole_file = -(-total * facts["sample_rate"] // (facts["original_rate"] * facts["hop"]))
            missing = whole_file - len(indices[0])
        for channel in indices:
            channel += [[origin for _, _, (origin,) in tables] for _ in range(missing)]
        lost += number - expected
        expected = number + 1
        if what == "end":
            break
        body = Bytes(payload)
        if major == 1:
            (frames,) = struct.unpack("<H", body.take(2))
        else:
            frames = body.varint() if what.startswith("short") else facts["frames_per_block"]
        assert coded or not what.endswith("plain")
        if model is not None and not what.endswith("plain"):
            rest = body.take(len(payload) - body.at)
            assert len(rest) <= len(indices) * packed_bytes(frames, sizes)
            for channel, part in zip(indices, decode_coded(rest, frames, len(indices), model, len(sizes)), strict=True):
                channel += part
            continue
        step = -(-frames * sum(map(bits, sizes)) // 8) if robust else packed_bytes(frames, sizes)
        for channel in indices:
            piece = body.take(step)
            channel += unpack_fields(piece, frames, tables) if robust else unpack(piece, frames, sizes)
        assert body.at == len(payload)
    assert source.at == len(data)
    bad = {"damaged_blocks": damaged, "lost_blocks": lost} if robust else {}
    return {"version": [major, minor], **facts, "indices": indices, **bad}


def tags(data: bytes) -> tuple[str, list[str], list[dict[str, Any]]]:
    """Vendor, comments and pictures of a sound file of version 2."""
    source = Bytes(data)
    source.at = 10
    header_2(source)
    payloads: list[bytes] = []
    while (code := data[source.at]) not in (0x10, 0x11, 0x12, 0x13, 0x20):
        _, number, whole, payload = block_2(source)
        assert whole
        if code == 0x82:
            assert number == len(payloads)
            assert len(payload) <= 32768
            payloads.append(payload)
    body, pictures = Bytes(b"".join(payloads)), []
    if not payloads:
        return "", [], []

    def text(form: str = "<I") -> bytes:
        return body.take(struct.unpack(form, body.take(4))[0])

    vendor = text().decode()
    comments = [text().decode() for _ in range(struct.unpack("<I", body.take(4))[0])]
    while body.at < len(body.data):
        (kind,) = struct.unpack(">I", body.take(4))
        mime, description = text(">I").decode("ascii"), text(">I").decode()
        width, height, depth, colors = struct.unpack(">4I", body.take(16))
        pictures.append(
            {
                "kind": kind,
                "mime": mime,
                "description": description,
                "width": width,
                "height": height,
                "depth": depth,
                "colors": colors,
                "data": text(">I"),
            }
        )
    return vendor, comments, pictures


def field() -> tuple[list[int], dict[int, int]]:
    """Powers of 2 in GF(256) with the polynomial 0x11D, and logarithms."""
    powers = [1]
    while len(powers) < 255:
        powers.append(2 * powers[-1] ^ (0x11D if powers[-1] >= 128 else 0))
    return powers, {value: power for power, value in enumerate(powers)}


def is_codeword(word: bytes, symbols: int) -> bool:
    """Whether a polynomial, its highest coefficient first, is 0 at `2**0`, `2**1`, ..."""
    powers, logs = field()
    for root in range(symbols):
        value = 0
        for byte in word:
            value = (powers[(logs[value] + root) % 255] if value else 0) ^ byte
        if value:
            return False
    return True


Layout = tuple[int, list[int]]
"""Number of a window's first data block; where they begin in the window, and behind them its layout blocks."""


def layout_of(number: int, payload: bytes) -> Layout:
    body = Bytes(payload)
    count, begin, least, width = body.varint(), body.varint(), body.varint(), body.varint()
    assert count >= 1
    assert least >= 7
    assert width <= 24
    stream, begins = int.from_bytes(body.take(-(-count * width // 8)), "little"), [begin]
    for _ in range(count):
        stream, more = divmod(stream, 1 << width)
        begins.append(begins[-1] + least + more)
    assert stream == 0
    assert body.at == len(payload)
    return number, begins


def parity_windows(data: bytes) -> list[tuple[int, int, Layout | None]]:
    """Where each window of a sound file with parity begins, its length, and its layout; checks every codeword."""
    source, found = Bytes(data), list[tuple[int, int, Layout | None]]()
    source.at = 10
    header_2(source)
    begin, layouts = 0, list[tuple[Layout, int]]()
    while data[source.at] != 0x20:
        start, code = source.at, data[source.at]
        _, number, whole, payload = block_2(source)
        assert whole
        if code == 0x83:
            layouts.append((layout_of(number, payload), start - begin))
        elif code != 0x81:
            assert not layouts, "layout blocks are the last of a window"
            continue
        if code != 0x81:
            continue
        parity = bytearray()
        while True:
            body = Bytes(payload)
            length, depth, symbols = body.varint(), body.varint(), body.varint()
            end = body.take(body.varint())
            assert (number, length, body.varint()) == (len(found), start - begin, len(parity))
            parity += payload[body.at :]
            if len(parity) == depth * symbols:
                break
            _, number, whole, payload = block_2(source)
            assert whole
        window = data[begin:start]
        for word in range(depth):
            codeword = window[word::depth] + parity[word::depth]
            assert len(codeword) <= 255
            assert is_codeword(codeword, symbols)
        layout = layouts[0][0] if layouts else None
        if layout is not None:
            assert all(other == layout for other, _ in layouts)
            assert layout[1][-1] == layouts[0][1]
        assert not end or data.startswith(end, source.at)
        assert bool(end) == (data[source.at] == 0x20)
        found.append((begin, length, layout))
        begin, layouts = source.at, []
    return found
