"""The container: round trips, golden files, a second decoder, newer versions, and every kind of damage."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_decoder
import version1
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from q2d2cli.container.blocks import read_header
from q2d2cli.container.header import FormatError, Header, Payload, block_frames
from q2d2cli.container.stream import Reader, Writer
from q2d2cli.quantizers.spec import QuantizerSpec

GOLDEN = ROOT / "tests" / "golden"
VECTORS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "vectors.json").read_text())
VERSION_2: dict[str, dict[str, Any]] = json.loads((GOLDEN / "version2.json").read_text())
SPEC = QuantizerSpec("rhombic", (5, 5, 3, 3))


class Pipe(io.BytesIO):
    """A file that cannot be sought in."""

    def seekable(self) -> bool:
        return False


def make_header(**changes: Any) -> Header:
    fields = {
        "quantizer": SPEC,
        "hop": 48,
        "sample_rate": 24_000,
        "model": "täst",
        "fingerprint": b"\x01\x02\x03\x04\x05\x06\x07\x08",
        "original_rate": 44_100,
        "channels": 2,
        "num_samples": None,
        "frames_per_block": 10,
    }
    return Header(**{**fields, **changes})


def draw_indices(header: Header, frames: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (header.channels, frames)
    return np.stack([rng.integers(0, size, shape) for size in header.quantizer.sizes], axis=-1)


def read(data: bytes) -> tuple[Reader, np.ndarray]:
    reader = Reader(io.BytesIO(data))
    blocks = [reader.unpack(block) for block in reader.blocks()]
    empty = np.empty((reader.header.channels, 0, reader.header.quantizer.num_indices), np.int64)
    return reader, np.concatenate([empty, *blocks], axis=1)


def samples_of(frames: int) -> int:
    """A number of samples at 44.1 kHz that takes so many frames of 48 samples at 24 kHz."""
    return frames * 48 * 44_100 // 24_000


def small_file(frames: int = 25, version: int = 2) -> bytes:
    file = io.BytesIO()
    header = make_header()
    if version == 1:
        return version1.write(header, draw_indices(header, frames), samples_of(frames))
    writer = Writer(file, header)
    writer.write(draw_indices(header, frames))
    writer.close(samples_of(frames))
    return file.getvalue()


def header_size(data: bytes) -> int:
    return read_header(io.BytesIO(data))[1]


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 3),
    block=st.integers(1, 40),
    pieces=st.lists(st.integers(0, 50), max_size=5),
    seed=st.integers(0, 99),
)
def test_round_trip_in_any_pieces(channels: int, block: int, pieces: list[int], seed: int) -> None:
    header = make_header(channels=channels, frames_per_block=block)
    indices = draw_indices(header, sum(pieces), seed)
    file = io.BytesIO()
    writer, position = Writer(file, header), 0
    for piece in pieces:
        writer.write(indices[:, position : position + piece])
        position += piece
    writer.close(samples_of(sum(pieces)))
    reader, back = read(file.getvalue())
    np.testing.assert_array_equal(back, indices)
    assert reader.header == replace(header, num_samples=samples_of(sum(pieces)))
    assert reader.bytes_read == writer.bytes_written == len(file.getvalue())
    assert reader.payload_bytes == writer.payload_bytes
    assert reader.frames == writer.frames == sum(pieces)


@pytest.mark.parametrize("kind", ["rectangular", "rhombic", "hexagonal"])
@pytest.mark.parametrize("samples", [None, 0, 2**64 - 2])
@pytest.mark.parametrize("version", [1, 2])
def test_header_round_trip(kind: str, samples: int | None, version: int) -> None:
    header = make_header(
        quantizer=QuantizerSpec(kind, (3, 4095, 7, 5)),
        num_samples=samples,
        hop=65535,
        channels=65535,
        original_rate=1_000_000,
        frames_per_block=65535,
        model="x" * 255,
        version=(version, 0),
    )
    data = header.to_bytes() if version == 2 else version1.header_bytes(header)
    assert read_header(io.BytesIO(data + b"block")) == (header, len(data))


@settings(max_examples=200, deadline=None)
@given(
    levels=st.lists(st.integers(2, 65535), min_size=1, max_size=255),
    rates=st.tuples(*[st.sampled_from([1, 8000, 16000, 22050, 24000, 44100, 48000, 192000, 192001])] * 2),
    samples=st.one_of(st.none(), st.integers(0, 2**49 - 2)),
    room=st.booleans(),
    payload=st.sampled_from(["packed", "coded"]),
)
def test_any_header_round_trip(
    levels: list[int], rates: tuple[int, int], samples: int | None, room: bool, payload: str
) -> None:
    header = make_header(
        quantizer=QuantizerSpec("fsq", tuple(levels)),
        sample_rate=rates[0],
        original_rate=rates[1],
        num_samples=samples,
        payload=payload,
        context=b"contextm" if payload == "coded" else b"",
    )
    data = header.to_bytes(room)
    assert read_header(io.BytesIO(data)) == (header, len(data))
    if room:
        assert len(data) == len(replace(header, num_samples=None).to_bytes(room))


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100])
@pytest.mark.parametrize("name", ["speech-1k", "speech-1k-v2"])
def test_ten_seconds_at_one_kilobit_cost_less_than_five_percent_more(rate: int, name: str) -> None:
    spec = QuantizerSpec("rhombic", (7, 7, 7, 7, 7, 7))
    header = make_header(quantizer=spec, hop=450, original_rate=rate, channels=1, num_samples=10 * rate, model=name)
    frames = header.frames_for(10 * rate)
    header = replace(header, frames_per_block=block_frames(spec, header.frame_rate, 1, "packed", frames))
    file = io.BytesIO()
    writer = Writer(file, header)
    writer.write(draw_indices(header, frames))
    writer.close(10 * rate)
    assert len(file.getvalue()) == writer.bytes_written < 1.05 * writer.payload_bytes


@pytest.mark.parametrize(
    "change",
    [
        {"hop": 0},
        {"hop": 65536},
        {"channels": 0},
        {"original_rate": 1_000_001},
        {"original_rate": 2**32 - 1},
        {"sample_rate": 10**9},
        {"model": ""},
        {"model": "x" * 256},
        {"num_samples": -1},
        {"fingerprint": b"short"},
        {"payload": "coded"},
        {"context": b"contextm"},
    ],
)
def test_header_that_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must have [08]|out of range"):
        make_header(**change)


def test_length_becomes_known_at_the_end() -> None:
    header = make_header(num_samples=None)
    indices = draw_indices(header, 25)
    samples = samples_of(25)
    for file, in_header in ((io.BytesIO(), samples), (Pipe(), None)):
        writer = Writer(file, header)
        writer.write(indices)
        writer.close(samples)
        reader, back = read(file.getvalue())
        assert reader.header.num_samples == in_header
        assert reader.num_samples == samples
        np.testing.assert_array_equal(back, indices)


@pytest.mark.parametrize("name", VECTORS)
def test_golden_files_of_version_1(name: str) -> None:
    vector, data = VECTORS[name], (GOLDEN / f"{name}.q2d").read_bytes()
    reader, indices = read(data)
    assert indices.tolist() == vector["indices"]
    header = Header(
        quantizer=QuantizerSpec(vector["kind"], tuple(vector["levels"])),
        hop=vector["hop"],
        sample_rate=vector["sample_rate"],
        model=vector["model"],
        fingerprint=bytes.fromhex(vector["fingerprint"]),
        original_rate=vector["original_rate"],
        channels=vector["channels"],
        num_samples=vector["num_samples"],
        frames_per_block=vector["frames_per_block"],
        version=(1, 0),
    )
    assert reader.header == header
    # What wrote them then, and the decoder written from the specification, say the same.
    assert version1.write(header, indices, vector["num_samples"]) == data
    assert reference_decoder.decode(data) == {"version": [1, 0], "payload": "packed", **vector}


@pytest.mark.parametrize("name", VERSION_2)
def test_golden_files_of_version_2(name: str) -> None:
    vector, data = VERSION_2[name], (GOLDEN / f"{name}.q2d").read_bytes()
    reader, indices = read(data)
    assert indices.tolist() == vector["indices"]
    said = reference_decoder.decode(data)
    assert said == {"version": [2, 0], **vector}
    if reader.metadata_blocks + reader.other_blocks + reader.damaged_blocks + reader.lost_blocks == 0:
        file = io.BytesIO() if name != "version2-unknown-length" else Pipe()
        writer = Writer(file, reader.header)
        writer.write(indices)
        writer.close(vector["num_samples"])
        assert file.getvalue() == data


@pytest.mark.parametrize("payload", ["packed", "robust"])
@pytest.mark.parametrize(
    ("kind", "levels"), [("body-centred", (3, 5, 3) * 2), ("d4", (3,) * 8), ("d4", (5, 3, 3, 3)), ("e8", (3,) * 8)]
)
def test_files_of_lattices_are_as_specified(kind: str, levels: tuple[int, ...], payload: Payload) -> None:
    spec = QuantizerSpec(kind, levels)
    rng = np.random.default_rng(0)
    indices = np.stack([rng.integers(0, size, (2, 50)) for size in spec.sizes], axis=-1)
    header = Header(
        quantizer=spec,
        hop=100,
        sample_rate=24_000,
        model="m",
        fingerprint=bytes(8),
        original_rate=24_000,
        channels=2,
        num_samples=5_000,
        frames_per_block=20,
        payload=payload,
    )
    file = io.BytesIO()
    writer = Writer(file, header)
    writer.write(indices)
    writer.close(5_000)
    reader, back = read(file.getvalue())
    assert reader.header == replace(header, version=(2, 1))
    np.testing.assert_array_equal(back, indices)
    said = reference_decoder.decode(file.getvalue())
    assert (said["version"], said["kind"], said["levels"]) == ([2, 1], kind, list(levels))
    assert said["indices"] == indices.tolist()


def test_example_in_the_specification_is_true() -> None:
    lines = (ROOT / "docs" / "format.md").read_text().split("offset  bytes")[1].split("```")[0].splitlines()[1:]
    data = bytes.fromhex("".join(re.findall(r"^ *\d+ +((?:[0-9a-f]{2} )+)", line + " ")[0] for line in lines))
    reader, indices = read(data)
    assert len(data) == 63
    assert (reader.header.model, reader.num_samples) == ("demo", 500)
    assert indices[0].tolist() == [[0, 0], [11, 15], [3, 7], [5, 1], [8, 12], [2, 9]]
    offsets = [int(line.split()[0]) for line in lines]
    lengths = [len(re.findall(r"^ *\d+ +((?:[0-9a-f]{2} )+)", line + " ")[0].split()) for line in lines]
    assert offsets == [sum(lengths[:i]) for i in range(len(lengths))]


def with_crc(kind: int, number: int, payload: bytes) -> bytes:
    assert number < 128
    length = bytes([len(payload)]) if len(payload) < 128 else bytes([len(payload) % 128 + 128, len(payload) // 128])
    data = bytes([kind, number]) + length + payload
    return data + struct.pack("<I", zlib.crc32(data))


def header_with(data: bytes, minor: int = 0, change: tuple[int, int] | None = None, more: bytes = b"") -> bytes:
    """A file whose header has another minor version, byte or end."""
    size = header_size(data)
    body = bytearray(data[11 : size - 4] + more)
    if change:
        body[change[0]] = change[1]
    header = data[:9] + bytes([minor, len(body)]) + bytes(body)
    return header + struct.pack("<I", zlib.crc32(header)) + data[size:]


@pytest.mark.parametrize("code", [0x80, 0x81, 0x82, 0xFF])
def test_later_minor_versions_are_read(code: int) -> None:
    data = small_file()
    size = header_size(data)
    newer = header_with(data[:size] + with_crc(code, 5, b"something new") + data[size:], 7, more=b"extra")
    end = newer.rindex(b"\x20\x03")
    newer = newer[:end] + with_crc(code, 6, b"") + with_crc(0x20, 3, newer[end + 3 : -4] + b"more")
    reader, indices = read(newer)
    assert reader.header.version == (2, 7)
    assert reader.bytes_read == len(newer)
    counts = {0x81: reader.parity_blocks, 0x82: reader.metadata_blocks}
    assert counts.get(code, reader.other_blocks) == 2
    np.testing.assert_array_equal(indices, read(data)[1])


def test_later_minor_versions_of_version_1_are_read() -> None:
    data = small_file(version=1)
    (length,) = struct.unpack_from("<H", data, 10)
    header = data[:9] + b"\x07" + struct.pack("<H", length + 5) + data[12 : length - 4] + b"extra"
    header += struct.pack("<I", zlib.crc32(header))
    # A block that may be skipped goes first; the others move up by one.
    blocks, position, sequence = version1.block(0x80, 0, b"something new"), length, 1
    while position < len(data):
        (first,) = struct.unpack_from("<I", data, position)
        size = first >> 8
        payload = data[position + 12 : position + 12 + size]
        blocks += version1.block(first & 255, sequence, payload + (b"more" if first & 255 == 2 else b""))
        position, sequence = position + 12 + size, sequence + 1
    reader, indices = read(header + blocks)
    assert reader.header.version == (1, 7)
    assert reader.bytes_read == len(header + blocks)
    np.testing.assert_array_equal(indices, read(data)[1])


def test_what_is_newer_than_this_reader_is_said_so() -> None:
    data = small_file()
    with pytest.raises(FormatError, match=r"version 3\.0.*upgrade"):
        read(data[:8] + b"\x03" + data[9:])
    with pytest.raises(FormatError, match=r"type 5.*upgrade"):
        read(data[: data.rindex(b"\x20\x03")] + with_crc(5, 3, b""))
    for value, words in ((0x09, "quantizer kind 9"), (0x71, "payload mode 7")):
        with pytest.raises(FormatError, match=words):
            read(header_with(data, change=(0, value)))
    with pytest.raises(FormatError, match=r"context model 636f6e746578746d.*not here: put"):
        read(replace(make_header(), payload="coded", context=b"contextm").to_bytes() + data[header_size(data) :])
    old = small_file(version=1)
    (length,) = struct.unpack_from("<H", old, 10)
    for offset, words in ((12, "quantizer kind 9"), (13, "payload mode 9")):
        header = old[:offset] + b"\x09" + old[offset + 1 : length - 4]
        with pytest.raises(FormatError, match=words):
            read(header + struct.pack("<I", zlib.crc32(header)) + old[length:])


@pytest.mark.parametrize("version", [1, 2])
def test_every_truncation_is_noticed(version: int) -> None:
    data = small_file(version=version)
    for length in range(len(data)):
        with pytest.raises(FormatError, match=r"truncated|empty"):
            read(data[:length])


@pytest.mark.parametrize("version", [1, 2])
def test_every_flipped_bit_is_noticed(version: int) -> None:
    data = small_file(version=version)
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(FormatError):
            read(bytes(flipped))


def test_blocks_out_of_order_or_lost_are_noticed() -> None:
    for version in (1, 2):
        data = small_file(version=version)
        reader = Reader(io.BytesIO(data))
        first = next(iter(reader.blocks()))
        with pytest.raises(FormatError, match="carries number 1"):
            read(data[: first.offset] + data[first.end :])
        with pytest.raises(FormatError, match="bytes after its end block"):
            read(data + b"\0")
        with pytest.raises(FormatError, match=f"two files joined.*byte {len(data)}"):
            read(data + data)
        with pytest.raises(FormatError, match=f"ends before block 1.*begins at byte {first.end}"):
            read(data[: first.end] + data)


def test_writer_refuses_what_no_reader_would_take() -> None:
    header = make_header()
    indices = draw_indices(header, 25)
    for samples in (samples_of(24), samples_of(26), -1, 10**15):
        writer = Writer(io.BytesIO(), header)
        writer.write(indices)
        with pytest.raises(ValueError, match=str(samples)):
            writer.close(samples)
    writer = Writer(Pipe(), replace(header, num_samples=samples_of(24)))
    writer.write(indices)
    with pytest.raises(ValueError, match="already written"):
        writer.close(samples_of(25))
    with pytest.raises(ValueError, match="expected integers"):
        writer.write(indices.astype(float))


def test_end_block_that_contradicts_the_frames_is_noticed() -> None:
    data = small_file()
    (size, end) = header_size(data), with_crc(0x20, 3, b"\x80\x80\x01")
    body = data[size : data.rindex(b"\x20\x03")]
    with pytest.raises(FormatError, match="header says"):
        read(data[:size] + body + end)
    header = make_header().to_bytes()
    with pytest.raises(FormatError, match="25 frames do not hold"):
        read(header + body + end)
    with pytest.raises(FormatError, match="says how many samples"):
        read(header + body + with_crc(0x20, 3, b""))
    old = small_file(version=1)
    with pytest.raises(FormatError, match="samples, which 25 frames do not hold"):
        read(old[:-20] + version1.block(2, 3, struct.pack("<Q", 10**15)))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"RIFF\0\0\0\0WAVE", "a WAV file"),
        (b"fLaC" + bytes(20), "a FLAC file"),
        (b"OggS" + bytes(20), "an Ogg file"),
        (b"ECDC" + bytes(20), "an EnCodec file"),
        (b"ID3" + bytes(20), "an MP3 file"),
        (b"\x93NUMPY" + bytes(20), "NumPy"),
        (b"\x89Q2D\n\x1a\n" + bytes(20), "line endings"),
        (b"hello, world", "not a .q2d file"),
        (b"", "empty"),
    ],
)
def test_other_formats_are_named(start: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        read(start)


def test_container_imports_no_torch() -> None:
    code = "import sys, q2d2cli.container.stream; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_golden_files_are_not_written_again(tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in GOLDEN.iterdir() if path.is_file()}
    result = subprocess.run([sys.executable, GOLDEN / "make_version2.py"], cwd=ROOT, capture_output=True, check=False)
    assert result.returncode != 0
    assert {path.name: path.read_bytes() for path in GOLDEN.iterdir() if path.is_file()} == before
