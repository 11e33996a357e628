"""Damaged files: what is wrong is named, everything else decodes in its place, gaps are smooth."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Run
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_container import draw_indices, make_header, samples_of, small_file
from test_seeking import audio_of, long_tokens

from q2d2cli import Codec
from q2d2cli.concealment import Concealer
from q2d2cli.container.header import FormatError
from q2d2cli.container.stream import Block, Reader, Writer
from q2d2cli.transcode import decode_file

HEADER = make_header()
FRAMES = 95
INDICES = draw_indices(HEADER, FRAMES)


def whole_file(known: bool = True, version: int = 2) -> bytes:
    if version == 1:
        return small_file(FRAMES, 1)
    file = io.BytesIO()
    if not known:
        file.seekable = lambda: False  # type: ignore[method-assign]
    writer = Writer(file, HEADER)
    writer.write(INDICES)
    writer.close(samples_of(FRAMES))
    return file.getvalue()


def blocks_of(data: bytes) -> list[Block]:
    return list(Reader(io.BytesIO(data)).blocks())


def concealed(data: bytes) -> tuple[Reader, np.ndarray, np.ndarray]:
    """The reader, the indices, and which frames are sound."""
    reader = Reader(io.BytesIO(data), conceal=True)
    indices, sound = [INDICES[:, :0]], [np.empty(0, bool)]
    for block in reader.blocks():
        indices.append(reader.unpack(block))
        sound.append(np.full(block.frames, block.state == "whole"))
    return reader, np.concatenate(indices, axis=1), np.concatenate(sound)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("known", [True, False])
def test_truncated_at_any_byte_everything_before_the_cut_is_there(version: int, known: bool) -> None:
    data = whole_file(known, version)
    ends = [block.end for block in blocks_of(data)]
    first = blocks_of(data)[0].offset
    for length in range(first, len(data)):
        reader, indices, sound = concealed(data[:length])
        count = 10 * sum(end <= length for end in ends) if length < ends[-1] else FRAMES
        np.testing.assert_array_equal(indices, INDICES[:, :count])
        assert sound.all()
        assert [fault.kind for fault in reader.faults] == ["truncated"]
        assert reader.num_samples is not None
        assert abs(reader.num_samples - samples_of(count)) <= 1


@pytest.mark.parametrize("version", [1, 2])
def test_every_flipped_byte_costs_the_block_that_it_is_in(version: int) -> None:
    data = whole_file(version=version)
    blocks = blocks_of(data)
    for position in range(blocks[0].offset, blocks[-1].end):
        flipped = bytearray(data)
        flipped[position] ^= 0x55
        hit = next(i for i, block in enumerate(blocks) if position < block.end)
        reader, indices, sound = concealed(bytes(flipped))
        inside = np.zeros(FRAMES, bool)
        inside[blocks[hit].first : blocks[hit].first + blocks[hit].frames] = True
        np.testing.assert_array_equal(sound, ~inside)
        np.testing.assert_array_equal(indices[:, sound], INDICES[:, sound])
        (fault,) = reader.faults
        assert (fault.kind, fault.block, fault.blocks) == ("damaged", hit, 1)
        assert fault.offset == blocks[hit].offset
        assert fault.start == pytest.approx(blocks[hit].first * 0.002)
        assert fault.duration == pytest.approx(blocks[hit].frames * 0.002)
        assert (reader.damaged_blocks, reader.lost_blocks) == (1, 0)
        with pytest.raises(FormatError, match=f"block {hit}"):
            list(Reader(io.BytesIO(bytes(flipped))).blocks())


@settings(max_examples=60, deadline=None)
@given(gone=st.sets(st.integers(0, 9)), version=st.sampled_from([1, 2]), known=st.booleans())
def test_lost_blocks_keep_the_others_in_their_places(gone: set[int], version: int, known: bool) -> None:
    data = whole_file(known, version)
    blocks = blocks_of(data)
    parts = [data[: blocks[0].offset]]
    parts += [data[block.offset : block.end] for i, block in enumerate(blocks) if i not in gone]
    reader, indices, sound = concealed(b"".join(parts) + data[blocks[-1].end :])
    assert indices.shape == INDICES.shape
    expected = np.array([frame // 10 not in gone for frame in range(FRAMES)])
    np.testing.assert_array_equal(sound, expected)
    np.testing.assert_array_equal(indices[:, sound], INDICES[:, sound])
    assert reader.num_samples == samples_of(FRAMES)
    assert (reader.damaged_blocks, reader.lost_blocks) == (0, len(gone))
    named = {n for fault in reader.faults for n in range(fault.block, fault.block + fault.blocks)}
    assert named == gone
    assert {fault.kind for fault in reader.faults} <= {"missing"}


@settings(max_examples=60, deadline=None)
@given(junk=st.binary(min_size=1, max_size=300), after=st.integers(0, 8), version=st.sampled_from([1, 2]))
def test_inserted_bytes_cost_nothing(junk: bytes, after: int, version: int) -> None:
    assume(b"\x89Q2D" not in junk)  # which begins another file, see below
    data = whole_file(version=version)
    place = blocks_of(data)[after].end
    if junk.startswith(data[place : place + 1]):
        junk = b"\0" + junk
    reader, indices, sound = concealed(data[:place] + junk + data[place:])
    np.testing.assert_array_equal(indices, INDICES)
    assert sound.all()
    assert [(fault.kind, fault.offset) for fault in reader.faults] == [("foreign", place)]


def test_joined_and_repeated() -> None:
    data = whole_file()
    blocks = blocks_of(data)
    reader, indices, _ = concealed(data + data)
    np.testing.assert_array_equal(indices, INDICES)
    assert [fault.kind for fault in reader.faults] == ["joined"]
    assert f"another .q2d file begins at byte {len(data)}" in str(reader.faults[0])
    reader, indices, _ = concealed(data[: blocks[3].end + 5] + data)
    np.testing.assert_array_equal(indices, INDICES[:, :40])
    assert [fault.kind for fault in reader.faults] == ["joined", "truncated"]
    # A block that comes twice is taken once.
    twice = data[: blocks[3].end] + data[blocks[2].offset :]
    reader, indices, sound = concealed(twice)
    np.testing.assert_array_equal(indices, INDICES)
    assert sound.all()
    assert {fault.kind for fault in reader.faults} == {"foreign"}


def robust_file(frames: int, known: bool = True) -> tuple[bytes, np.ndarray]:
    header = make_header(payload="robust", channels=1, num_samples=samples_of(frames) if known else None)
    indices, file = draw_indices(header, frames), io.BytesIO()
    if not known:
        file.seekable = lambda: False  # type: ignore[method-assign]
    writer = Writer(file, header)
    writer.write(indices)
    writer.close(samples_of(frames))
    return file.getvalue(), indices


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), known=st.booleans(), frames=st.sampled_from([1000, 2005]))
@example(seed=147316, known=True, frames=2005)  # number and length of one head are wrong
def test_blocks_of_robust_files_are_found_by_their_places(seed: int, known: bool, frames: int) -> None:
    """One byte in a hundred is changed, heads among them: hardly a block is whole, and nearly all indices are right."""
    data, indices = robust_file(frames, known)
    begin, rng = blocks_of(data)[0].offset, np.random.default_rng(seed)
    bad = np.frombuffer(data, np.uint8).copy()
    places = begin + rng.choice(len(bad) - begin, len(bad) // 100, replace=False)
    bad[places] ^= rng.integers(1, 256, len(places), dtype=np.uint8)
    reader = Reader(io.BytesIO(bad.tobytes()), conceal=True)
    there = [(block, reader.unpack(block)) for block in reader.blocks() if block.state != "lost"]
    right = sum((found == indices[:, block.first : block.first + block.frames]).sum() for block, found in there)
    assert right > 0.93 * indices.size
    assert reader.lost_seconds < 0.04 * frames / header_rate(reader)
    assert reader.frames <= frames


def header_rate(reader: Reader) -> float:
    return reader.header.frame_rate


@settings(max_examples=60, deadline=None)
@given(
    hit=st.integers(0, 99),
    place=st.integers(0, 2),
    error=st.integers(1, 255),
    gone=st.sets(st.integers(0, 99), max_size=3),
    known=st.booleans(),
)
def test_a_damaged_head_of_a_robust_file_costs_nothing(
    hit: int, place: int, error: int, gone: set[int], known: bool
) -> None:
    data, indices = robust_file(1000, known)
    blocks = blocks_of(data)
    bad = bytearray(data)
    bad[blocks[hit].offset + place] ^= error
    gone -= {hit + n for n in range(-1, 3)}  # the place of a block is known by what follows it
    parts = [bytes(bad[: blocks[0].offset])]
    parts += [bytes(bad[block.offset : block.end]) for number, block in enumerate(blocks) if number not in gone]
    reader = Reader(io.BytesIO(b"".join([*parts, bytes(bad[blocks[-1].end :])])), conceal=True)
    found = list(reader.blocks())
    assert sum(block.frames for block in found) == 1000
    for block in found:
        if block.state != "lost":
            np.testing.assert_array_equal(
                reader.unpack(block), indices[:, block.first : block.first + block.frames], err_msg=str(block)
            )
    lost = {block.first // 10 + n for block in found if block.state == "lost" for n in range(block.frames // 10)}
    assert lost == gone
    assert reader.lost_seconds == pytest.approx(len(gone) * 10 * 0.002)
    assert not reader.nothing_left


@pytest.mark.parametrize("kind", ["packed", "robust"])
def test_a_wrong_byte_of_the_header_is_known_from_its_checksum(kind: str) -> None:
    data = whole_file() if kind == "packed" else robust_file(200)[0]
    expected, begin = Reader(io.BytesIO(data)).header, blocks_of(data)[0].offset
    for place in range(11, begin):
        for error in (1, 0x80, 0xFF):
            bad = data[:place] + bytes([data[place] ^ error]) + data[place + 1 :]
            with pytest.raises(FormatError, match="checksum of its header"):
                Reader(io.BytesIO(bad))
            reader = Reader(io.BytesIO(bad), conceal=True)
            assert reader.header == expected
            assert sum(block.frames for block in reader.blocks()) == (FRAMES if kind == "packed" else 200)
            assert [str(fault) for fault in reader.faults] == [
                f"byte {place}, in the header (known from its checksum)" if place < begin - 4 else ""
            ] or place >= begin - 4
    for place in range(11, begin - 1):
        bad = data[:place] + bytes([data[place] ^ 7, data[place + 1] ^ 9]) + data[place + 2 :]
        with pytest.raises(FormatError, match="checksum of its header"):
            Reader(io.BytesIO(bad), conceal=True)


def test_a_file_without_a_block_that_can_be_read_is_not_decoded(tiny_codec: Codec, tmp_path: Path) -> None:
    path, bad, wav = tmp_path / "whole.q2d", tmp_path / "bad.q2d", tmp_path / "out.wav"
    long_tokens(tiny_codec, 6.0, 16_000).save(path)
    data = bytearray(path.read_bytes())
    for block in Reader(io.BytesIO(bytes(data))).blocks():
        data[block.begin] ^= 1
    bad.write_bytes(data)
    for conceal, words in ((True, "nothing to decode"), (False, "none of its blocks can be read")):
        with pytest.raises(FormatError, match=words):
            decode_file(lambda header: tiny_codec, bad, wav, conceal=conceal)
        assert not wav.exists()


# What is heard.


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.tuples(st.booleans(), st.integers(1, 400)), min_size=1, max_size=6))
def test_gaps_are_filled_to_the_frame(lengths: list[tuple[bool, int]]) -> None:
    concealer, pieces, expected, frame = Concealer(HEADER), [], [], 0
    indices = draw_indices(HEADER, sum(count for _, count in lengths))
    for lost, count in lengths:
        part = indices[:, frame : frame + count]
        pieces += concealer.lose(count) if lost else concealer.push(part)
        expected.append(np.full(count, not lost))
        frame += count
    pieces += concealer.finish()
    filled = np.concatenate(pieces, axis=1)
    assert filled.shape == indices.shape
    sound = np.concatenate(expected)
    np.testing.assert_array_equal(filled[:, sound], indices[:, sound])
    assert ((filled >= 0) & (filled < np.array(HEADER.quantizer.sizes))).all()


def test_a_gap_fades_out_and_in_and_nothing_else_changes() -> None:
    concealer = Concealer(HEADER)
    for piece in (concealer.push(INDICES), concealer.lose(500), concealer.push(INDICES)):
        assert sum(part.shape[1] for part in piece) >= 0
    # Frames of 2 ms: the gap is from 0.19 s to 1.19 s.
    ones = np.ones((2, 44_100 * 138 // 100), np.float32)
    gain = np.concatenate([concealer.fade(ones[:, :30_000], 0), concealer.fade(ones[:, 30_000:], 30_000)], axis=1)[0]
    time = np.arange(len(gain)) / 44_100
    assert (gain[(time < 0.19) | (time >= 1.19)] == 1).all()
    assert (gain[(time > 0.2901) & (time < 1.0899)] == 0).all()
    assert np.abs(np.diff(gain)).max() < 1 / 4_000


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_concealed_audio_keeps_its_timing(tiny_codec: Codec, tmp_path: Path, rate: int) -> None:
    path, bad = tmp_path / "whole.q2d", tmp_path / "bad.q2d"
    long_tokens(tiny_codec, 15.0, rate).save(path)
    data = bytearray(path.read_bytes())
    blocks = blocks_of(bytes(data))
    data[blocks[1].begin + 9] ^= 1
    bad.write_bytes(data[: blocks[4].offset] + b"junk" + data[blocks[4].end :])
    whole = audio_of(tiny_codec, path, tmp_path / "whole.raw")
    heard = audio_of(tiny_codec, bad, tmp_path / "bad.raw", conceal=True)
    assert len(heard) == len(whole)
    # Besides the two gaps, and what the network sees of them, all is as it was.
    reach = (tiny_codec.model.decoder_context or 0) + 20
    clean = np.ones(len(whole), bool)
    for block in (blocks[1], blocks[4]):
        begin, end = ((block.first + n) * 48 * rate // 24_000 for n in (-reach, block.frames + reach))
        clean[max(0, begin) : end] = False
        middle = round((block.first + block.frames / 2) * 48 * rate / 24_000)
        assert np.abs(heard[middle - 100 : middle + 100]).max() == 0
    assert clean.mean() > 0.3
    np.testing.assert_array_equal(heard[clean], whole[clean])
    with pytest.raises(FormatError, match=r"block 1.*; \d\.\d\d s would be lost: --conceal decodes the rest"):
        audio_of(tiny_codec, bad, tmp_path / "none.raw")


@pytest.mark.parametrize(
    "harm", [lambda data: data[: len(data) // 2], lambda data: data + data], ids=["half", "joined"]
)
def test_the_commands_say_what_is_wrong(
    run: Run, tiny: Path, tiny_codec: Codec, tmp_path: Path, harm: Callable[[bytes], bytes]
) -> None:
    path, bad, wav = tmp_path / "whole.q2d", tmp_path / "bad.q2d", tmp_path / "out.wav"
    long_tokens(tiny_codec, 6.0, 16_000).save(path)
    bad.write_bytes(harm(path.read_bytes()))
    result = run("info", bad, "--json")
    assert result.returncode == 1
    facts = json.loads(result.stdout)
    assert len(facts["faults"]) == 1
    kind = facts["faults"][0]["kind"]
    assert f"q2d2: {bad} is damaged: " in result.stderr.decode()
    result = run("decode", bad, wav, "-m", tiny)
    assert result.returncode == 1
    assert result.stderr.decode().count("\n") == 1
    assert b"--conceal" in result.stderr
    assert not wav.exists()
    result = run("decode", bad, wav, "-m", tiny, "--conceal", "--json")
    assert result.returncode == 0, result.stderr.decode()
    summary = json.loads(result.stdout)
    assert summary["faults"][0]["kind"] == kind
    assert ("truncated in block" if kind == "truncated" else "two files joined") in result.stderr.decode()
    assert result.stderr.decode().splitlines()[0].endswith("; decoded what is there")
    assert soundfile.info(wav).frames == facts["samples"] == round(summary["duration"] * 16_000)
