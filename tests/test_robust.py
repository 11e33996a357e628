"""The robust payload: labelling, fields, damaged and lost blocks, the channel, the commands on real speech."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import labelling_table
import numpy as np
import pytest
import reference_decoder
import soundfile
import torch
import version1
from conftest import CLIP, ROOT, Run
from hypothesis import given, settings
from hypothesis import strategies as st

from q2d2cli import Codec, Tokens, UsageError
from q2d2cli.container.channel import Channel, channel_header, damage_file, damage_indices
from q2d2cli.container.fields import fields_bytes, pack_fields, unpack_fields
from q2d2cli.container.header import FormatError, Header, Payload, block_frames
from q2d2cli.container.labelling import coordinates, labellings, origins
from q2d2cli.container.stream import Reader, Writer
from q2d2cli.quantizers.geometry import DIMENSIONS
from q2d2cli.quantizers.grids import make_grids
from q2d2cli.quantizers.spec import GRID_KINDS, KINDS, LATTICE_KINDS, QuantizerSpec

GOLDEN = ROOT / "tests" / "golden"
VECTORS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "robust.json").read_text())
TABLES: list[dict[str, Any]] = json.loads((GOLDEN / "labellings.json").read_text())
SHIPPED = QuantizerSpec("rhombic", (9, 9, 7, 7, 7, 7))


def damage(tokens: Tokens, payload: Any, ber: float | None, loss: float | None, rng: np.random.Generator) -> Tokens:
    """Tokens as they come out of a channel, sent in this payload mode."""
    header, channel = channel_header(tokens.header, payload), Channel(ber, loss, rng)
    indices = torch.from_numpy(damage_indices(header, tokens.indices.numpy(), channel))
    return Tokens(indices, header, channel.hit_blocks, channel.lost_blocks)


@st.composite
def specs(draw: st.DrawFn) -> QuantizerSpec:
    """Quantizers of every kind, of sizes that are and are not powers of two."""
    kind = draw(st.sampled_from(KINDS))
    if kind == "rhombic":
        level = st.integers(1, 5).map(lambda n: 2 * n + 1)
    else:
        level = st.integers(2, 11 if kind in GRID_KINDS else 40)
    if kind == "vq":
        return QuantizerSpec(kind, (draw(level),))
    if kind == "rvq":
        return QuantizerSpec(kind, (draw(level),) * draw(st.integers(1, 3)))
    if kind in LATTICE_KINDS:
        size = DIMENSIONS[kind]
        level = st.sampled_from((3,) if kind == "e8" else (3, 5))
        return QuantizerSpec(kind, tuple(draw(st.lists(level, min_size=size, max_size=size))) * draw(st.integers(1, 2)))
    if kind == "fsq":
        return QuantizerSpec(kind, tuple(draw(st.lists(level, min_size=1, max_size=4))))
    pairs = draw(st.lists(st.tuples(level, level), min_size=1, max_size=3))
    return QuantizerSpec(kind, tuple(value for pair in pairs for value in pair))


def draw_indices(spec: QuantizerSpec, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, size, shape) for size in spec.sizes], axis=-1)


def make_tokens(
    spec: QuantizerSpec = SHIPPED, frames: int = 95, channels: int = 2, payload: Payload = "packed", block: int = 10
) -> Tokens:
    header = Header(
        quantizer=spec,
        hop=48,
        sample_rate=24_000,
        model="m",
        fingerprint=bytes(8),
        original_rate=24_000,
        channels=channels,
        num_samples=48 * frames - 5,
        frames_per_block=block,
        payload=payload,
    )
    return Tokens(torch.from_numpy(draw_indices(spec, (channels, frames), 0)), header)


def to_file(tokens: Tokens, **changes: Any) -> bytes:
    file = io.BytesIO()
    writer = Writer(file, replace(tokens.header, payload="robust", **changes))
    writer.write(tokens.indices.numpy())
    writer.close(tokens.num_samples)
    return file.getvalue()


def read(data: bytes) -> tuple[Reader, np.ndarray]:
    reader = Reader(io.BytesIO(data))
    blocks = [reader.unpack(block) for block in reader.blocks()]
    return reader, np.concatenate(blocks, axis=1)


def blocks_of(data: bytes) -> list[tuple[int, int]]:
    """Where each block begins and ends; the end block is the last."""
    reader = Reader(io.BytesIO(data))
    result = [(block.offset, block.end) for block in reader.blocks()]
    return [*result, (result[-1][1], len(data))]


# Labelling.


@settings(max_examples=80, deadline=None)
@given(spec=specs())
def test_every_index_has_a_code_and_every_code_an_index(spec: QuantizerSpec) -> None:
    for labelling, size, width in zip(labellings(spec), spec.sizes, spec.field_bits, strict=True):
        assert labelling.width == width
        assert 2 ** (width - 1) < size <= 2**width
        assert len(np.unique(labelling.codes)) == len(labelling.codes) == size
        assert len(labelling.points) == 2**width
        assert labelling.points.min() == 0
        assert labelling.points.max() == size - 1
        np.testing.assert_array_equal(labelling.points[labelling.codes], np.arange(size))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table['kind']}-{table['levels'][0]}")
def test_labelling_is_that_of_the_golden_tables_and_of_the_specification(table: dict[str, Any]) -> None:
    ours = labellings(QuantizerSpec(table["kind"], tuple(table["levels"])))
    assert [labelling.codes.tolist() for labelling in ours] == table["codes"]
    assert [labelling.points.tolist() for labelling in ours] == table["points"]
    # The slow decoder, written from the specification.
    theirs = reference_decoder.labellings(KINDS.index(table["kind"]), table["levels"])
    assert [list(pair[:2]) for pair in theirs] == [
        list(pair) for pair in zip(table["codes"], table["points"], strict=True)
    ]


def test_tables_in_the_specification_are_true() -> None:
    text = " ".join((ROOT / "docs" / "format.md").read_text().split())
    for row in labelling_table.table().splitlines():
        assert row in text
    example = labellings(QuantizerSpec("rhombic", (3, 3)))[0]
    assert f"indices 0 to 12 are {', '.join(map(str, example.codes))}" in text
    assert f"`T` is {', '.join(map(str, example.points))}." in text


def test_a_flipped_bit_moves_a_point_less_than_half_as_far() -> None:
    for name, _, _, plain, ours in labelling_table.rows():
        assert ours < 0.5 * plain, name


@pytest.mark.parametrize("kind", [*GRID_KINDS, *LATTICE_KINDS])
def test_coordinates_are_those_of_the_grids(kind: str) -> None:
    for levels in ((7, 7), (5, 9)) if kind in GRID_KINDS else ((5, 3, 3) * 3, (3,) * 8):
        levels = levels[: DIMENSIONS[kind]]
        grid = make_grids(QuantizerSpec(kind, levels))[0]
        np.testing.assert_array_equal(coordinates(kind, levels) / 4, grid.points.numpy())
        nearest = grid.points.square().sum(-1).argmin().item()
        assert origins(QuantizerSpec(kind, levels)).tolist() == [nearest]


def test_wide_fields_have_a_labelling_and_wider_ones_are_refused(tmp_path: Path) -> None:
    labelling = labellings(QuantizerSpec("rectangular", (100, 37)))[0]
    np.testing.assert_array_equal(labelling.points[labelling.codes], np.arange(3700))
    tokens = make_tokens(QuantizerSpec("rectangular", (257, 256)), 3)
    with pytest.raises(UsageError, match=r"65792 points is out of range.*65536"):
        tokens.save(tmp_path / "large.q2d", payload="robust")
    assert list(tmp_path.iterdir()) == []
    tokens.save(tmp_path / "large.q2d", payload="packed")


# Fields.


@settings(max_examples=80, deadline=None)
@given(spec=specs(), frames=st.integers(0, 60), seed=st.integers(0, 99))
def test_fields_round_trip(spec: QuantizerSpec, frames: int, seed: int) -> None:
    indices = draw_indices(spec, (frames,), seed)
    data = pack_fields(indices, spec)
    assert len(data) == fields_bytes(frames, spec) == -(-frames * sum(spec.field_bits) // 8)
    np.testing.assert_array_equal(unpack_fields(data, frames, spec), indices)


@settings(max_examples=60, deadline=None)
@given(spec=specs(), frames=st.integers(1, 8), seed=st.integers(0, 99))
def test_a_flipped_bit_touches_one_index_of_one_frame(spec: QuantizerSpec, frames: int, seed: int) -> None:
    indices = draw_indices(spec, (frames,), seed)
    data = pack_fields(indices, spec)
    width = sum(spec.field_bits)
    ends = np.cumsum(spec.field_bits)
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        back = unpack_fields(bytes(flipped), frames, spec)
        assert ((back >= 0) & (back < np.array(spec.sizes))).all()
        expected = indices.copy()
        if position < frames * width:
            frame, pair = position // width, int((position % width >= ends).sum())
            expected[frame, pair] = back[frame, pair]
        np.testing.assert_array_equal(back, expected)


@settings(max_examples=40, deadline=None)
@given(spec=specs(), seed=st.integers(0, 99))
def test_any_bytes_decode(spec: QuantizerSpec, seed: int) -> None:
    data = np.random.default_rng(seed).bytes(fields_bytes(30, spec))
    back = unpack_fields(data, 30, spec)
    assert ((back >= 0) & (back < np.array(spec.sizes))).all()
    with pytest.raises(FormatError, match="bytes where"):
        unpack_fields(data + b"\0", 30, spec)


def test_indices_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="index 85 is out of range: pair 1 has 85 points"):
        pack_fields(np.array([[0, 0], [144, 85]]), QuantizerSpec("rhombic", (9, 9, 7, 7)))


# Files.


@pytest.mark.parametrize("name", VECTORS)
def test_golden_files(name: str) -> None:
    vector, data = VECTORS[name], (GOLDEN / f"{name}.q2d").read_bytes()
    assert reference_decoder.decode(data) == {"version": [1, 1], "payload": "robust", **vector}
    reader, indices = read(data)
    assert indices.tolist() == vector["indices"]
    assert (reader.damaged_blocks, reader.lost_blocks) == (vector["damaged_blocks"], vector["lost_blocks"])
    if reader.damaged_blocks == reader.lost_blocks == 0:
        assert version1.write(reader.header, indices, vector["num_samples"]) == data


def test_modes_rates_and_blocks(tmp_path: Path) -> None:
    size = block_frames(SHIPPED, 500, 1, "packed", 2000)
    tokens = make_tokens(frames=2000, channels=1, block=size)
    tokens.save(tmp_path / "packed.q2d")
    tokens.save(tmp_path / "robust.q2d", payload="robust")
    packed, robust = Tokens.load(tmp_path / "packed.q2d"), Tokens.load(tmp_path / "robust.q2d")
    assert torch.equal(packed.indices, robust.indices)
    assert packed.header.payload == "packed"
    assert robust.header.payload == "robust"
    assert packed.bit_rate == pytest.approx(500 * np.log2(145 * 85 * 85))
    assert robust.bit_rate == 500 * (8 + 7 + 7)
    # What is lost with a block is at most a second.
    assert packed.header.frames_per_block == 500 == size
    assert robust.header.frames_per_block == 500
    for rate, levels in ((53, (7,) * 6), (500, (9,) * 6)):
        assert block_frames(QuantizerSpec("rhombic", levels), rate, 1, "robust") <= rate
    # The mode stays unless another one is asked for, and the way back leaves no trace.
    robust.save(tmp_path / "again.q2d")
    robust.save(tmp_path / "back.q2d", payload="packed")
    assert (tmp_path / "again.q2d").read_bytes() == (tmp_path / "robust.q2d").read_bytes()
    assert (tmp_path / "back.q2d").read_bytes() == (tmp_path / "packed.q2d").read_bytes()


def test_flipped_bits_damage_indices_and_nothing_else() -> None:
    tokens = make_tokens()
    data = to_file(tokens)
    indices = tokens.indices.numpy()
    blocks = list(Reader(io.BytesIO(data)).blocks())
    soft = {p for block in blocks for p in range(block.begin, block.end - 4)}
    stored_checksums = {p for block in blocks for p in range(block.end - 4, block.end)}
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        if position in soft:
            reader, back = read(bytes(flipped))
            assert (reader.damaged_blocks, reader.lost_blocks) == (1, 0)
            assert (back != indices).sum() <= 1
        elif position in stored_checksums:
            reader, back = read(bytes(flipped))
            assert reader.damaged_blocks == 1
            np.testing.assert_array_equal(back, indices)
        elif position < blocks[0].offset or position >= blocks[-1].end:
            with pytest.raises(FormatError):
                read(bytes(flipped))


@pytest.mark.parametrize("lost", [{0}, {4, 5}, {9}, {8, 9}, set(range(10))], ids=str)
@pytest.mark.parametrize("known", [True, False])
def test_lost_blocks_become_points_near_the_origin(lost: set[int], known: bool) -> None:
    tokens = make_tokens()
    data = to_file(tokens, **({} if known else {"num_samples": None}))
    blocks = blocks_of(data)
    left = data[: blocks[0][0]] + b"".join(data[a:b] for i, (a, b) in enumerate(blocks) if i not in lost)
    reader, back = read(left)
    expected = tokens.indices.numpy().copy()
    for block in lost:
        # The centres of 9 by 9 and 7 by 7 points.
        expected[:, 10 * block : 10 * block + 10] = [40, 24, 24]
    np.testing.assert_array_equal(back, expected)
    assert (reader.damaged_blocks, reader.lost_blocks, reader.frames) == (0, len(lost), 95)
    assert reader.num_samples == tokens.num_samples
    assert reference_decoder.decode(left)["indices"] == back.tolist()


def test_what_is_no_loss_of_blocks_is_refused() -> None:
    tokens = make_tokens()
    data = to_file(tokens)
    blocks = [data[begin:end] for begin, end in blocks_of(data)]
    head = data[: blocks_of(data)[0][0]]
    for order in ([1, 0], [0, 0], [9, 3], [9]):
        with pytest.raises(FormatError, match="is damaged"):
            read(head + b"".join(blocks[i] for i in order) + b"".join(blocks[i] for i in (8, 10)))
    with pytest.raises(FormatError, match="truncated"):
        read(head + b"".join(blocks[:-1]))
    # A number far ahead is no reason to make up months of audio.
    far = b"\x10\xc0\x84\x3d" + blocks[1][2:-4]
    with pytest.raises(FormatError, match="carries number 1000000"):
        read(head + blocks[0] + far + struct.pack("<I", zlib.crc32(far)))
    # Nor are more blocks lost than the samples take.
    moved = [part[:1] + bytes([part[1] + 50]) + part[2:-4] for part in blocks]
    with pytest.raises(FormatError, match="frames do not hold"):
        read(head + b"".join(part + struct.pack("<I", zlib.crc32(part)) for part in moved))


# The channel.


@pytest.mark.parametrize("payload", ["packed", "robust"])
def test_damage_is_reproducible_and_as_much_as_asked(payload: Any) -> None:
    tokens = make_tokens(frames=2000, payload="robust")
    generator = np.random.default_rng
    one = damage(tokens, payload, 0.01, None, generator(1))
    assert torch.equal(one.indices, damage(tokens, payload, 0.01, None, generator(1)).indices)
    assert not torch.equal(one.indices, damage(tokens, payload, 0.01, None, generator(2)).indices)
    assert one.indices.shape == tokens.indices.shape
    assert ((one.indices >= 0) & (one.indices < torch.tensor(tokens.header.quantizer.sizes))).all()
    assert one.header.payload == payload
    nothing = damage(tokens, payload, 0.0, None, generator(1))
    assert torch.equal(nothing.indices, tokens.indices)
    assert (nothing.damaged_blocks, nothing.lost_blocks) == (0, 0)
    everything = damage(tokens, payload, None, 1.0, generator(1))
    assert everything.lost_blocks == 200
    assert (everything.indices == torch.tensor([40, 24, 24])).all()


def test_rates_of_the_channel() -> None:
    channel = Channel(0.01, None, np.random.default_rng(0))
    sent = bytes(5000)
    flipped = 0
    for _ in range(10):
        arrived = channel.send(sent)
        assert arrived is not None
        flipped += int.from_bytes(arrived, "little").bit_count()
    assert flipped == channel.flipped_bits
    # Six standard deviations of a binomial distribution.
    assert abs(flipped - 4000) < 6 * np.sqrt(400_000 * 0.01 * 0.99)
    channel = Channel(None, 0.2, np.random.default_rng(0))
    arrivals = [channel.send(b"x") for _ in range(2000)]
    assert arrivals.count(None) == channel.lost_blocks
    assert set(arrivals) == {None, b"x"}
    assert abs(channel.lost_blocks - 400) < 6 * np.sqrt(2000 * 0.2 * 0.8)


def test_flipped_bits_hit_fewer_indices_of_a_robust_payload() -> None:
    tokens = make_tokens(QuantizerSpec("rhombic", (9, 9, 9, 9, 7, 7)), 2000, 1)
    wrong = {}
    for payload in ("packed", "robust"):
        arrived = damage(tokens, payload, 1e-3, None, np.random.default_rng(3))
        wrong[payload] = (arrived.indices != tokens.indices).sum().item()
    assert 0 < 3 * wrong["robust"] < wrong["packed"]


@pytest.mark.parametrize(("ber", "loss"), [(0.02, None), (None, 0.4)])
def test_damage_is_what_saving_the_channel_and_loading_do(
    tmp_path: Path, ber: float | None, loss: float | None
) -> None:
    tokens = make_tokens(payload="robust")
    path = tmp_path / "x.q2d"
    tokens.save(path)
    path.write_bytes(damage_file(path.read_bytes(), Channel(ber, loss, np.random.default_rng(5))))
    loaded, damaged = Tokens.load(path), damage(tokens, "robust", ber, loss, np.random.default_rng(5))
    assert torch.equal(loaded.indices, damaged.indices)
    assert loaded.header == damaged.header
    assert loaded.damaged_blocks == damaged.damaged_blocks
    assert loaded.lost_blocks == damaged.lost_blocks
    assert loaded.damaged_blocks + loaded.lost_blocks > 0
    # What has been through one channel can go through another.
    again = damage_file(path.read_bytes(), Channel(None, 0.5, np.random.default_rng(6)))
    assert read(again)[1].shape == tokens.indices.shape


@pytest.mark.parametrize(("ber", "loss"), [(None, None), (0.1, 0.1), (1.5, None), (None, -0.1), (float("nan"), None)])
def test_impossible_channels_are_refused(ber: float | None, loss: float | None) -> None:
    with pytest.raises(ValueError, match=r"exactly one|out of range"):
        Channel(ber, loss, np.random.default_rng(0))


# The commands, on real speech with the shipped model.


def test_robust_speech_survives_flipped_bits_and_lost_blocks(run: Run, tmp_path: Path) -> None:
    sent, flipped, lossy, wav = (tmp_path / name for name in ("sent.q2d", "flipped.q2d", "lossy.q2d", "out.wav"))
    result = run("encode", CLIP, sent, "--robust", "--json")
    assert result.returncode == 0, result.stderr.decode()
    assert json.loads(result.stdout)["payload_bit_rate"] == pytest.approx(22 * 24_000 / 144, rel=0.01)
    facts = json.loads(run("info", sent, "--json").stdout)
    assert (facts["payload"], facts["bits_per_frame"], facts["packed_bits_per_frame"]) == ("robust", 22, 20)
    assert facts["payload_bit_rate"] == pytest.approx(22 * 24_000 / 144)
    assert facts["version"] == "2.0"
    assert "robust costs 10.0% more" in run("info", sent).stdout.decode()

    result = run("channel", sent, flipped, "--ber", "1e-3", "--json")
    assert result.returncode == 0, result.stderr.decode()
    report = json.loads(result.stdout)
    assert report["blocks"] == facts["blocks"]
    assert report["bits"] == 8 * facts["payload_bytes"]
    before, after = sent.read_bytes(), flipped.read_bytes()
    assert len(before) == len(after)
    difference = int.from_bytes(before, "little") ^ int.from_bytes(after, "little")
    assert difference.bit_count() == report["flipped_bits"]
    assert 0 < report["flipped_bits"] < 100

    result = run("channel", sent, lossy, "--packet-loss", "0.3", "--seed", "2")
    assert result.returncode == 0, result.stderr.decode()
    assert lossy.stat().st_size < sent.stat().st_size
    lost = json.loads(run("info", lossy, "--json").stdout)["lost_blocks"]
    assert f"{lost} blocks lost" in result.stderr.decode()
    assert 0 < lost < facts["blocks"]

    for path, damaged, missing in ((flipped, report["damaged_blocks"], 0), (lossy, 0, lost)):
        said = f"q2d2: {path} is damaged: block"
        result = run("info", path)
        assert result.returncode == 1
        assert result.stderr.decode().startswith(said)
        assert ("with a wrong checksum" if damaged else "lost") in result.stderr.decode()
        assert f"damaged: {damaged + missing} of {facts['blocks']} blocks" in result.stdout.decode()
        result = run("decode", path, wav, "--force", "--json")
        assert result.returncode == 0
        assert result.stderr.decode().startswith(said)
        assert result.stderr.decode().endswith("; decoded what is there\n")
        summary = json.loads(result.stdout)
        assert (summary["damaged_blocks"], summary["lost_blocks"]) == (damaged, missing)
        original, decoded = soundfile.info(CLIP), soundfile.info(wav)
        assert (decoded.frames, decoded.samplerate) == (original.frames, original.samplerate)


def test_packed_speech_is_refused_after_the_channel(
    run: Run, tmp_path: Path, speech: Codec, clip: tuple[np.ndarray, int]
) -> None:
    sent, flipped, lossy, wav = (tmp_path / name for name in ("sent.q2d", "flipped.q2d", "lossy.q2d", "out.wav"))
    tokens = speech.encode(*clip)
    tokens.save(sent)
    assert run("channel", sent, flipped, "--ber", "1e-3").returncode == 0
    assert run("channel", sent, lossy, "--packet-loss", "0.5").returncode == 0
    for path, words in ((flipped, "checksum"), (lossy, "lost")):
        for command in (("decode", path, wav), ("info", path), ("channel", path, tmp_path / "x.q2d", "--ber", "0.1")):
            result = run(*command)
            text = result.stderr.decode()
            assert result.returncode == 1
            assert text.startswith(f"q2d2: {path} is damaged")
            assert words in text
            # Of the flipped one there is no rest.
            assert ("--conceal decodes the rest" in text) == (command[0] == "decode" and path == lossy)
            assert ("none of its blocks can be read" in text) == (command[0] == "decode" and path == flipped)
            assert text.count("\n") == 1
    assert not wav.exists()
    # From Python the damage can be heard all the same.
    for payload in ("packed", "robust"):
        audio = speech.decode(damage(tokens, payload, 1e-3, None, np.random.default_rng(1)))
        assert audio.shape == (1, len(clip[0]))
        assert audio.isfinite().all()


def test_channel_command_has_manners(run: Run, tmp_path: Path) -> None:
    tokens = make_tokens()
    source, target = tmp_path / "in.q2d", tmp_path / "out.q2d"
    tokens.save(source, payload="robust")

    def refused(code: int, words: str, *arguments: str | Path) -> None:
        result = run("channel", *arguments)
        assert result.returncode == code
        assert words in result.stderr.decode()
        assert result.stderr.count(b"\n") == 1
        assert result.stdout == b""

    refused(2, "exactly one", source, target)
    refused(2, "exactly one", source, target, "--ber", "0.1", "--packet-loss", "0.1")
    refused(2, "out of range", source, target, "--ber", "2")
    refused(2, "--seed", source, target, "--ber", "0.1", "--seed", "-1")
    refused(2, "does not exist", tmp_path / "none.q2d", target, "--ber", "0.1")
    refused(1, "it looks like a WAV file", CLIP, target, "--ber", "0.1")
    assert not target.exists()
    assert run("channel", source, target, "--ber", "0.1").returncode == 0
    first = target.read_bytes()
    refused(2, "--force", source, target, "--ber", "0.1")
    assert run("channel", source, target, "--ber", "0.1", "--force").returncode == 0
    assert target.read_bytes() == first
    piped = run("channel", "-", "-", "--ber", "0.1", stdin=source.read_bytes())
    assert piped.stdout == first


def test_channel_needs_no_torch(tmp_path: Path) -> None:
    make_tokens().save(tmp_path / "in.q2d")
    code = "import sys; from pathlib import Path; from q2d2cli.cli.channel import channel; "
    code += (
        "channel(Path(sys.argv[1]), Path(sys.argv[2]), ber=0.1, packet_loss=None, seed=1, force=False, as_json=False); "
    )
    code += "sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, tmp_path / "in.q2d", tmp_path / "out.q2d"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    assert (tmp_path / "out.q2d").exists()
