"""Any quantizer, length, channels, blocks, payload and parity: read as written, in parts, and mended after damage.

A few seconds of examples; Q2D2_EXAMPLES=1000 tries as many of each.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import reference_decoder
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from test_coding import SPEC, table_tensors
from test_container import Pipe
from test_robust import draw_indices, specs

from q2d2cli import checkpoints
from q2d2cli.container import parity
from q2d2cli.container.blocks import LAYOUT, PARITY, RawBlock, Scanner, read_header
from q2d2cli.container.coding import library
from q2d2cli.container.header import FormatError, Header, Payload
from q2d2cli.container.mending import Mended, mended
from q2d2cli.container.stream import Reader, Writer

EXAMPLES = int(os.environ.get("Q2D2_EXAMPLES", "0"))
RATES = (8_000, 16_000, 22_050, 24_000, 44_100, 12_345)


def some(count: int) -> settings:
    """So many examples, or as many as Q2D2_EXAMPLES says."""
    return settings(max_examples=EXAMPLES or count, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """The fingerprint of a context model for `SPEC`."""
    folder = tmp_path_factory.mktemp("context")
    library.save(folder / checkpoints.CONTEXT_NAME, "adaptive", table_tensors(200), b"12345678")
    model = library.open_folder(folder, b"12345678")
    assert model is not None
    File.context = model.fingerprint
    yield model.fingerprint
    library._folders.remove(folder)


@dataclass
class File:
    """A file, and what was written to it."""

    context = b""
    data: bytes
    header: Header
    indices: np.ndarray
    samples: int
    parity: float | None


@st.composite
def files(draw: st.DrawFn, shares: st.SearchStrategy[float | None]) -> File:
    payload = draw(st.sampled_from(["packed", "robust", "coded"]))
    spec = SPEC if payload == "coded" else draw(specs())
    samples, piped = draw(st.one_of(st.integers(0, 3000), st.integers(0, 100_000))), draw(st.booleans())
    header = Header(
        quantizer=spec,
        hop=draw(st.integers(1, 500)),
        sample_rate=24_000,
        model=draw(st.text(min_size=1, max_size=8).filter(str.isprintable)),
        fingerprint=b"12345678",
        original_rate=draw(st.sampled_from(RATES)),
        channels=draw(st.integers(1, 3)),
        num_samples=samples if draw(st.booleans()) else None,
        frames_per_block=draw(st.integers(1, 300)),
        payload=payload,
        context=File.context if payload == "coded" else b"",
    )
    frames = header.frames_for(samples)
    assume(frames * header.channels * spec.num_indices < 20_000 and frames < 200 * header.frames_per_block)
    indices = draw_indices(spec, (header.channels, frames), draw(st.integers(0, 99)))
    if payload == "coded":
        indices[:, frames // 2 :] = 0  # blocks that are coded, and such that are packed
    share = draw(shares)
    file = Pipe() if piped else io.BytesIO()
    # Windows as short as these have no writer, but any reader must take them.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "WINDOW_BYTES", draw(st.sampled_from([65536, 2000, 300])))
        write(file, header, indices, samples, share, draw)
    return File(file.getvalue(), header, indices, samples, share)


def write(
    file: io.BytesIO, header: Header, indices: np.ndarray, samples: int, share: float | None, draw: st.DrawFn
) -> None:
    """Write in pieces of any size."""
    frames = indices.shape[1]
    writer, at = Writer(file, header, batch=draw(st.sampled_from([1, 64])), parity=share), 0
    while at < frames:
        size = draw(st.integers(1, frames))
        writer.write(indices[:, at : at + size])
        at += size
    writer.close(samples)
    assert writer.bytes_written == len(file.getvalue())


def windows(data: bytes) -> list[tuple[int, int]]:
    """Where each parity window begins and ends."""
    header, at = read_header(io.BytesIO(data))
    scanner, begin, found = Scanner(io.BytesIO(data[at:]), header, at), 0, []
    inside = True
    while isinstance(block := scanner.next(), RawBlock):
        if block.code == PARITY and inside:
            found.append((begin, block.offset))
        inside = block.code != PARITY
        begin = block.end if not inside else begin
    return found


SHARES = st.one_of(st.sampled_from([0.001, 0.1, 0.5, 1.0]), st.floats(0.001, 1.0))


def read(data: bytes, conceal: bool = False) -> tuple[Reader, np.ndarray]:
    reader = Reader(io.BytesIO(data), conceal)
    shape = (reader.header.channels, 0, reader.header.quantizer.num_indices)
    blocks = [indices for _, indices in reader.unpacked(reader.blocks()) if indices is not None]
    return reader, np.concatenate([np.empty(shape, np.int64), *blocks], axis=1)


@some(40)
@given(data=st.data())
def test_what_is_written_is_read(data: st.DataObject) -> None:
    file = data.draw(files(st.one_of(st.none(), SHARES)))
    reader, indices = read(file.data)
    np.testing.assert_array_equal(indices, file.indices)
    assert (reader.num_samples, reader.bytes_read, reader.faults) == (file.samples, len(file.data), [])
    known = file.header.num_samples is not None or reader.header.num_samples is not None
    expected = replace(
        file.header, num_samples=file.samples if known else None, parity=file.parity is not None,
        version=(2, 1 if file.header.quantizer.is_lattice else 0),
    )  # fmt: skip
    assert reader.header == expected
    if file.header.payload != "coded":
        assert reference_decoder.decode(file.data)["indices"] == file.indices.tolist()
    if file.parity is not None:
        whole = Mended(io.BytesIO(file.data))
        assert (whole.read(), whole.mender.mended) == (file.data, 0)
    # A part of it, wherever it begins.
    frames = file.indices.shape[1]
    first = data.draw(st.integers(0, max(0, frames - 1)))
    last = data.draw(st.integers(first + 1, max(first + 1, frames)))
    for opened in (io.BytesIO(file.data), Pipe(file.data)):
        part = Reader(opened)
        found = [(block.first, part.unpack(block)) for block in part.part(first, last)]
        if frames:
            begin = found[0][0]
            got = np.concatenate([indices for _, indices in found], axis=1)[:, first - begin : last - begin]
            np.testing.assert_array_equal(got, file.indices[:, first:last])
        else:
            assert not found


@some(40)
@given(data=st.data())
def test_a_lost_stretch_within_the_share_is_mended_to_the_byte(data: st.DataObject) -> None:
    file = data.draw(files(SHARES))
    share = file.parity or 0.0
    first, last = data.draw(st.sampled_from(windows(file.data)))
    longest = int(share * (last - first))
    assume(longest)
    length = data.draw(st.integers(1, longest))
    begin = data.draw(st.one_of(st.sampled_from([first, last - length]), st.integers(first, last - length)))
    kind = data.draw(st.sampled_from(["zeros", "noise", "gone", "flipped"]))
    event(kind)
    middle = {
        "zeros": bytes(length),
        "noise": np.random.default_rng(begin).bytes(length),
        "gone": b"",
        "flipped": bytes(byte ^ 0x55 for byte in file.data[begin : begin + length]),
    }[kind]
    bad = file.data[:begin] + middle + file.data[begin + length :]
    fixed = Mended(io.BytesIO(bad))
    assert fixed.read() == file.data
    np.testing.assert_array_equal(read(file.data)[1], file.indices)


@some(25)
@given(data=st.data())
def test_damage_costs_what_it_hits_and_is_never_given_as_sound(data: st.DataObject) -> None:
    file = data.draw(files(st.one_of(st.none(), SHARES)))
    begin = data.draw(st.integers(0, len(file.data) - 1))
    end = data.draw(st.integers(begin + 1, len(file.data)))
    noise = np.random.default_rng(begin).bytes(end - begin)
    bad = file.data[:begin] + data.draw(st.sampled_from([b"", bytes(end - begin), noise])) + file.data[end:]
    assume(bad != file.data)
    try:
        reader = Reader(io.BytesIO(bad), conceal=True)
        blocks = list(reader.blocks())
    except FormatError:
        return
    assert reader.faults or file.parity is not None
    for block in blocks:
        there = file.indices[:, block.first : block.first + block.frames]
        if block.state == "whole":
            np.testing.assert_array_equal(reader.unpack(block), there)
    # What is before it is all there, in its place.
    sound = [block for block in Reader(io.BytesIO(file.data)).blocks() if block.end <= begin]
    before = sound[-1].first + sound[-1].frames if sound else 0
    assert before <= sum(block.frames for block in blocks if block.state == "whole")


def test_a_part_of_a_damaged_file_is_mended(tmp_path: Path) -> None:
    header = Header(
        quantizer=SPEC, hop=240, sample_rate=24_000, model="m", fingerprint=bytes(8), original_rate=24_000,
        channels=1, num_samples=None, frames_per_block=100,
    )  # fmt: skip
    indices = draw_indices(SPEC, (1, 60_000), 0)
    file = io.BytesIO()
    writer = Writer(file, header, parity=0.05)
    writer.write(indices)
    writer.close(240 * 60_000)
    data = bytearray(file.getvalue())
    hit = next(block for block in Reader(io.BytesIO(bytes(data))).blocks() if block.first == 30_000)
    data[hit.begin : hit.begin + 50] = bytes(50)
    for first, needed in ((0, False), (29_900, True), (59_000, False)):
        opened = io.BytesIO(bytes(data))
        reader = Reader(mended(opened, lambda _, first=first: (first / 100, 2.0)))
        assert isinstance(reader.file, Mended) == needed
        found = [(block.first, reader.unpack(block)) for block in reader.part(first, first + 200)]
        got = np.concatenate([part for _, part in found], axis=1)[:, first - found[0][0] :][:, :200]
        np.testing.assert_array_equal(got, indices[:, first : first + 200])


def protected(
    blocks: int, frames_per_block: int, share: float, window: int, seed: int, payload: Payload = "coded"
) -> bytes:
    """A file with parity; entropy coded, its blocks differ in size."""
    frames = blocks * frames_per_block
    header = Header(
        quantizer=SPEC, hop=240, sample_rate=24_000, model="m", fingerprint=bytes(8), original_rate=24_000, channels=1,
        num_samples=240 * frames, frames_per_block=frames_per_block, payload=payload,
        context=File.context if payload == "coded" else b"",
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    indices = draw_indices(SPEC, (1, frames), seed)
    for begin in range(0, frames, frames_per_block):
        indices[:, begin : begin + rng.integers(frames_per_block + 1)] = 0
    file = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "WINDOW_BYTES", window)
        writer = Writer(file, header, batch=64, parity=share)
        writer.write(indices)
        writer.close(header.num_samples or 0)
    return file.getvalue()


def lose_blocks(data: bytes, rng: np.random.Generator) -> tuple[bytes, int]:
    """`data` without as many of its blocks, here and there, as its parity promises to mend; and how many these are.

    The header may be among them, and parity; of each window a parity block stays, and a layout block if there are any,
    else what is last in the window.
    """
    header, at = read_header(io.BytesIO(data))
    scanner, units = Scanner(io.BytesIO(data[at:]), header, at), [(0, at, 0)]
    facts: list[parity.Facts] = []
    while isinstance(block := scanner.next(), RawBlock):
        units.append((block.offset, block.end, block.code))
        found = parity.parse(block.payload) if block.code == PARITY else None
        if found is not None and (block.number == len(facts)):
            facts.append(found[0])
    lost = set[int]()
    for (first, last), of in zip(windows(data), facts, strict=True):
        end = next((begin for begin, _ in windows(data) if begin > first), len(data))
        here = [number for number, unit in enumerate(units) if first <= unit[0] < end]
        stay = [next((n for n in here[::-1] if units[n][2] == code), -1) for code in (LAYOUT, PARITY)]
        stay += [n for n in here if units[n][1] == last]
        for number in rng.permutation([n for n in here if n not in stay]):
            tried, gaps = sorted({*lost, int(number)} & set(here)), list[tuple[int, int]]()
            for n in tried:
                begin, stop = units[n][:2]
                if gaps and gaps[-1][1] == begin and begin != last:
                    begin = gaps.pop()[0]
                gaps.append((begin, stop))
            if sum(-(-(stop - begin) // of.depth) for begin, stop in gaps) <= of.symbols:
                lost.add(int(number))
    return b"".join(data[begin:end] for n, (begin, end, _) in enumerate(units) if n not in lost), len(lost)


@settings(some(15), derandomize=not EXAMPLES)
@given(
    blocks=st.integers(1, 60),
    frames_per_block=st.integers(5, 120),
    share=SHARES,
    window=st.sampled_from([65536, 2000, 600]),
    seed=st.integers(0, 10**6),
    payload=st.sampled_from(["coded", "coded", "packed", "robust"]),
)
def test_blocks_lost_in_many_places_are_mended(
    blocks: int, frames_per_block: int, share: float, window: int, seed: int, payload: Payload
) -> None:
    data = protected(blocks, frames_per_block, share, window, seed, payload)
    bad, lost = lose_blocks(data, np.random.default_rng(seed))
    event(f"{min(lost, 10)} lost")
    for opened in (io.BytesIO(bad), Pipe(bad)):
        fixed = Mended(opened)
        assert fixed.read() == data
        assert (fixed.mender.mended > 0) == (lost > 0)


def test_layout_costs_a_byte_or_two_for_each_block() -> None:
    data = protected(200, 200, 0.1, 20_000, 0)
    header, at = read_header(io.BytesIO(data))
    scanner, cost = Scanner(io.BytesIO(data[at:]), header, at), 0
    while isinstance(block := scanner.next(), RawBlock):
        cost += block.end - block.offset if block.code == LAYOUT else 0
    assert 0 < cost < 2.5 * 200
    starts = {block.offset for block in Reader(io.BytesIO(data)).blocks()}
    places = [(begin, layout) for begin, _, layout in reference_decoder.parity_windows(data) if layout]
    assert len(places) > 1
    assert {begin + at for begin, layout in places for at in layout[1][:-1]} == starts


@pytest.mark.parametrize("gone", [(3, 4, 9), (5, 18), (0, 9), (7,), (2, 6, 11, 19)])
def test_lost_blocks_of_any_size_are_mended(gone: tuple[int, ...]) -> None:
    """Entropy-coded blocks, whose sizes nobody knows once they are gone, in one place or two."""
    header = Header(
        quantizer=SPEC, hop=240, sample_rate=24_000, model="m", fingerprint=bytes(8), original_rate=24_000,
        channels=1, num_samples=240 * 4000, frames_per_block=200, payload="coded", context=File.context,
    )  # fmt: skip
    indices = draw_indices(SPEC, (1, 4000), 0)
    for block in range(20):
        indices[:, 200 * block : 200 * block + 8 * block] = 0
    file = io.BytesIO()
    writer = Writer(file, header, parity=0.2)
    writer.write(indices)
    writer.close(240 * 4000)
    data, parts, at = file.getvalue(), [], 0
    blocks = list(Reader(io.BytesIO(data)).blocks())
    assert len({block.end - block.offset for block in blocks}) > 5
    for number in gone:
        parts.append(data[at : blocks[number].offset])
        at = blocks[number].end
    fixed = Mended(io.BytesIO(b"".join([*parts, data[at:]])))
    assert fixed.read() == data
