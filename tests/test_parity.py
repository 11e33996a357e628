"""Parity: what it promises to mend it mends to the byte, in a pipe, too; the rest is said to be lost."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import reference_decoder
import torch
from conftest import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_container import draw_indices, make_header, read, samples_of
from test_seeking import long_tokens

from q2d2cli import Codec, Tokens, UsageError
from q2d2cli.cli.encode import share
from q2d2cli.cli.info import as_text, facts_of
from q2d2cli.container.header import FormatError
from q2d2cli.container.mending import Mended
from q2d2cli.container.parity import facts_for, parse
from q2d2cli.container.stream import Reader, Writer
from q2d2cli.transcode import decode_file

FRAMES = 2500
HEADER = make_header(frames_per_block=200)


def protected(part: float, frames: int = FRAMES) -> bytes:
    file = io.BytesIO()
    writer = Writer(file, HEADER, parity=part)
    writer.write(draw_indices(HEADER, frames))
    writer.close(samples_of(frames))
    assert writer.bytes_written == len(file.getvalue())
    return file.getvalue()


PROTECTED = {share: protected(share) for share in (0.1, 0.2)}
DATA = PROTECTED[0.1]
WINDOW = Reader(io.BytesIO(DATA))
ALL_BLOCKS = list(WINDOW.blocks())
LENGTH = ALL_BLOCKS[-1].end
"""Bytes of the one window: all up to the parity."""


def mend(data: bytes) -> tuple[bytes, int]:
    mended = Mended(io.BytesIO(data))
    return mended.read(), mended.mender.mended


def test_parity_is_skipped_by_whoever_does_not_need_it() -> None:
    reader, indices = read(DATA)
    np.testing.assert_array_equal(indices, draw_indices(HEADER, FRAMES))
    assert reader.parity_blocks > 0
    assert reader.header.parity
    assert reference_decoder.decode(DATA)["indices"] == indices.tolist()
    assert mend(DATA) == (DATA, 0)
    plain = io.BytesIO()
    writer = Writer(plain, HEADER)
    writer.write(indices)
    writer.close(samples_of(FRAMES))
    assert 1.1 < len(DATA) / len(plain.getvalue()) < 1.13
    assert mend(plain.getvalue()) == (plain.getvalue(), 0)


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(["zeros", "noise", "gone", "inserted"]),
    place=st.floats(0, 1),
    size=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
def test_a_lost_stretch_is_mended_to_the_byte(kind: str, place: float, size: float, seed: int) -> None:
    length = max(1, int(0.1 * LENGTH * size))
    begin = int(place * (LENGTH - length))
    noise = np.random.default_rng(seed).bytes(length)
    new = {"zeros": bytes(length), "noise": noise}.get(kind, b"")
    bad = DATA[:begin] + new + DATA[begin + length :]
    if kind == "inserted":
        bad = DATA[:begin] + bytes(length) + DATA[begin:]
    whole, mended = mend(bad)
    assert whole == DATA
    assert (mended > 0) == (bad != DATA)


def test_scattered_damage_lost_blocks_and_parity_itself() -> None:
    rng = np.random.default_rng(0)
    bad = bytearray(DATA)
    for position in rng.integers(0, LENGTH, LENGTH // 100):
        bad[position] ^= 1 << rng.integers(8)
    assert mend(bytes(bad))[0] == DATA
    for gone in (0, 5, len(ALL_BLOCKS) - 1):
        block = ALL_BLOCKS[gone]
        assert mend(DATA[: block.offset] + DATA[block.end :])[0] == DATA
    # Damage to parity alone, and to the end block, is put right, too.
    for position in range(LENGTH, len(DATA), 97):
        assert mend(DATA[:position] + bytes([DATA[position] ^ 1]) + DATA[position + 1 :])[0] == DATA
    assert mend(DATA[:-3])[0] == DATA


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), part=st.sampled_from([0.1, 0.2]))
def test_one_byte_in_a_hundred_changed_is_mended_to_the_byte(seed: int, part: float) -> None:
    """Hardly a block is whole then, of parity as little as of data."""
    data, rng = PROTECTED[part], np.random.default_rng(seed)
    bad = np.frombuffer(data, np.uint8).copy()
    # One parity block must say what it is of: here it is the first.
    at = Reader(io.BytesIO(data))
    begin = list(at.blocks())[-1].end
    places = rng.choice(np.delete(np.arange(len(bad)), np.s_[begin : begin + 20]), len(bad) // 100, replace=False)
    bad[places] ^= rng.integers(1, 256, len(places), dtype=np.uint8)
    whole, mended = mend(bad.tobytes())
    assert whole == data
    assert mended >= len(places)


def test_damaged_parity_alone_is_not_taken_for_right() -> None:
    """Every byte of the first parity block's head, every way: the window is given as it is, and never changed."""
    for place in range(LENGTH, LENGTH + 12):
        for error in (1, 8, 255):
            bad = DATA[:place] + bytes([DATA[place] ^ error]) + DATA[place + 1 :]
            whole, _ = mend(bad)
            assert whole == DATA


def test_more_than_that_is_not_made_up() -> None:
    bad = DATA[: LENGTH // 4] + bytes(LENGTH // 3) + DATA[LENGTH // 4 + LENGTH // 3 :]
    assert mend(bad) == (bad, 0)
    for length in range(0, len(DATA), 311):
        whole, _ = mend(DATA[:length])
        assert whole in (DATA[:length], DATA)


def test_windows_follow_each_other_in_bounded_memory() -> None:
    data = protected(0.05, 120_000)
    blocks = list(Reader(io.BytesIO(data)).blocks())
    bad = bytearray(data)
    for part in (0.2, 0.5, 0.9):
        begin = blocks[int(part * len(blocks))].offset
        bad[begin + 50 : begin + 1500] = bytes(1450)
    mended = Mended(io.BytesIO(bytes(bad)))
    pieces = []
    while piece := mended.read(1000):
        pieces.append(piece)
        assert len(mended.mender._data) < 300_000
    assert b"".join(pieces) == data
    assert mended.mender.windows >= 3


@pytest.mark.parametrize("length", [1, 200, 1346, 65_536])
@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 1.0])
def test_any_share_fits_a_codeword(length: int, part: float) -> None:
    facts = facts_for(length, part)
    assert -(-length // facts.depth) + facts.symbols <= 255
    assert facts.mendable >= min(int(part * length), facts.mendable) >= int(part * length)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_as_parity_take_no_memory(payload: bytes) -> None:
    found = parse(payload)
    assert found is None or found[0].parity_bytes <= 2**20


def test_shares() -> None:
    assert share("10%") == pytest.approx(0.1)
    assert share("0.25") == 0.25
    for text in ("0%", "101%", "-1", "ten", "", "%", "nan"):
        with pytest.raises(UsageError, match="parity"):
            share(text)


def test_decode_mends_as_it_reads(tiny_codec: Codec, tmp_path: Path) -> None:
    path, bad = tmp_path / "whole.q2d", tmp_path / "bad.q2d"
    tokens = long_tokens(tiny_codec, 12.0, 16_000)
    with path.open("wb") as file:
        writer = Writer(file, tokens.header, parity=0.2)
        writer.write(tokens.indices.numpy())
        writer.close(tokens.num_samples)
    data = path.read_bytes()
    bad.write_bytes(data[:20] + bytes(500) + data[520:])
    whole = decode_file(lambda header: tiny_codec, path, tmp_path / "whole.wav")
    fixed = decode_file(lambda header: tiny_codec, bad, tmp_path / "bad.wav")
    assert (whole.mended_bytes, whole.faults, fixed.faults) == (0, (), ())
    assert fixed.mended_bytes >= 500
    assert (tmp_path / "bad.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()
    # A part of it, too.
    part = decode_file(lambda header: tiny_codec, bad, tmp_path / "part.wav", start=0.25, duration=1.0)
    assert part.mended_bytes >= 500
    begin = 44 + 2 * 4000
    assert (tmp_path / "part.wav").read_bytes()[44:] == (tmp_path / "whole.wav").read_bytes()[begin : begin + 32_000]
    assert torch.equal(Tokens.load(bad, 3.0, 1.0).indices, Tokens.load(path, 3.0, 1.0).indices)
    bad.write_bytes(data[:2000] + bytes(4000) + data[6000:])
    with pytest.raises(FormatError, match="--conceal"):
        decode_file(lambda header: tiny_codec, bad, tmp_path / "none.wav")


def test_the_commands(run: Run, tmp_path: Path) -> None:
    path, bad, out = tmp_path / "whole.q2d", tmp_path / "bad.q2d", tmp_path / "out.q2d"
    path.write_bytes(DATA)
    bad.write_bytes(DATA[:100] + DATA[500:])
    result = run("info", bad, "--json")
    facts = json.loads(result.stdout)
    assert result.returncode == 1
    assert facts["mends_whole"] is True
    assert facts["mendable_bytes"] >= 0.1 * facts["window_bytes"] - 60
    result = run("repair", bad, out)
    assert result.returncode == 0, result.stderr.decode()
    assert out.read_bytes() == DATA
    assert b"bytes mended" in result.stderr
    bad.write_bytes(DATA[:100] + DATA[3000:])
    result = run("repair", bad, tmp_path / "none.q2d")
    assert result.returncode == 1
    assert b"cannot be mended" in result.stderr
    assert not (tmp_path / "none.q2d").exists()


def test_info_says_what_the_parity_of_a_short_file_is_worth(tmp_path: Path) -> None:
    """Of a file of one block, a tenth of that block: not the block."""
    path = tmp_path / "short.q2d"
    for frames, less in ((200, True), (2500, False)):
        data = protected(0.1, frames)
        path.write_bytes(data)
        facts = facts_of(path)
        blocks = list(Reader(io.BytesIO(data)).blocks())
        assert facts["largest_block"] == max(block.end - block.offset for block in blocks)
        assert (facts["mendable_bytes"] < facts["largest_block"]) == less
        assert ("less than a block of" in as_text(facts)) == less
        for begin in range(0, blocks[-1].end - facts["mendable_bytes"], 1301):
            end = begin + facts["mendable_bytes"]
            assert mend(data[:begin] + bytes(end - begin) + data[end:])[0] == data
        block = blocks[0]
        lost = data[: block.offset] + data[block.end :]
        assert (mend(lost)[0] == data) == (not less)
