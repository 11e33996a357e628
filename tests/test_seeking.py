"""Seeking: a part of a file is what the whole has there, and takes reading no more than its blocks."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import version1
from conftest import Run
from hypothesis import given, settings
from hypothesis import strategies as st

from q2d2cli import Codec, Tokens, UsageError
from q2d2cli.cli.decode import seconds
from q2d2cli.container.blocks import METADATA, to_block
from q2d2cli.container.header import Header
from q2d2cli.container.stream import Reader, Writer
from q2d2cli.quantizers.spec import QuantizerSpec
from q2d2cli.transcode import decode_file

RATES = (8_000, 16_000, 24_000, 44_100)


class Counting(io.BytesIO):
    """Counts the bytes that are read of it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


def long_tokens(codec: Codec, seconds: float, rate: int, channels: int = 1) -> Tokens:
    samples = round(seconds * rate)
    header = codec.header(rate, channels, samples)
    rng = np.random.default_rng(0)
    shape = (channels, header.frames_for(samples))
    indices = np.stack([rng.integers(0, size, shape) for size in header.quantizer.sizes], axis=-1)
    return Tokens(torch.from_numpy(indices), header)


def audio_of(codec: Codec, path: Path, target: Path, **arguments: float) -> np.ndarray:
    decode_file(lambda header: codec, path, target, raw="f32le", **arguments)
    return np.fromfile(target, np.float32)


@pytest.mark.parametrize("rate", RATES)
def test_a_part_is_exactly_what_the_whole_has_there(tiny_codec: Codec, tmp_path: Path, rate: int) -> None:
    path = tmp_path / "long.q2d"
    long_tokens(tiny_codec, 23.45, rate).save(path)
    whole = audio_of(tiny_codec, path, tmp_path / "whole.raw")
    assert len(whole) == round(23.45 * rate)
    for start, duration in ((0.0, 0.5), (0.3, 2.0), (9.999, 1.0), (12.3456, 0.01), (20.0, 9.0), (23.449, 1.0)):
        part = audio_of(tiny_codec, path, tmp_path / "part.raw", start=start, duration=duration)
        begin = round(start * rate)
        expected = whole[begin : begin + round(duration * rate)]
        np.testing.assert_array_equal(part, expected)
    rest = audio_of(tiny_codec, path, tmp_path / "part.raw", start=11.0)
    np.testing.assert_array_equal(rest, whole[11 * rate :])


def test_parts_of_tokens(tiny_codec: Codec, tmp_path: Path) -> None:
    path = tmp_path / "long.q2d"
    tokens = long_tokens(tiny_codec, 20.0, 16_000, channels=2)
    tokens.save(path)
    for start, duration in ((0.0, 1.0), (7.0, 0.25), (12.34, 3.0), (19.0, 5.0)):
        part = Tokens.load(path, start=start, duration=duration)
        first = int(start * 500 + 1e-9)
        count = part.indices.shape[1]
        assert torch.equal(part.indices, tokens.indices[:, first : first + count])
        assert part.duration == pytest.approx(min(duration, 20.0 - start), abs=1 / 500)
        # It is a whole file of its own.
        part.save(tmp_path / "part.q2d", overwrite=True)
        assert torch.equal(Tokens.load(tmp_path / "part.q2d").indices, part.indices)
    assert torch.equal(Tokens.load(path, start=3.0).indices, tokens.indices[:, 1500:])
    with pytest.raises(UsageError, match=r"nothing at 20\.0 s: the audio is 20\.000 s long"):
        Tokens.load(path, start=20.0)
    with pytest.raises(UsageError, match="out of range"):
        Tokens.load(path, start=-1.0)


def hours(count: int, known: bool = True, version: int = 2, extra: bool = False, block: int = 128) -> tuple[bytes, int]:
    """A file of so many frames whose first pair counts them."""
    spec = QuantizerSpec("fsq", (4000, 5, 5))
    header = Header(
        quantizer=spec,
        hop=480,
        sample_rate=24_000,
        model="m",
        fingerprint=bytes(8),
        original_rate=24_000,
        channels=1,
        num_samples=480 * count,
        frames_per_block=block,
    )
    indices = np.zeros((1, count, 3), np.int64)
    indices[0, :, 0] = np.arange(count) % 4000
    if version == 1:
        return version1.write(header, indices, 480 * count), count
    file = io.BytesIO()
    if not known:
        file.seekable = lambda: False  # type: ignore[method-assign]
        header = replace(header, num_samples=None)
    writer = Writer(file, header)
    for first in range(0, count, 50 * block):
        if extra:
            # Blocks that are skipped, of very different sizes.
            file.write(to_block(METADATA, 0, bytes(first % 30_000)))
        writer.write(indices[:, first : first + 50 * block])
    writer.close(480 * count)
    return file.getvalue(), count


@pytest.mark.parametrize("kind", ["plain", "unknown length", "version 1", "metadata", "damaged"])
def test_any_block_of_a_long_file_is_found_by_reading_little(kind: str) -> None:
    count = 360_000  # two hours
    data, _ = hours(
        count, known=kind != "unknown length", version=1 if kind == "version 1" else 2, extra=kind == "metadata"
    )
    if kind == "damaged":
        middle = len(data) // 2
        data = data[:middle] + bytes(100_000) + data[middle + 90_000 :]
    for frame in (0, 1, 127, 128, 70_000, 200_001, count - 1):
        file = Counting(data)
        reader = Reader(file, conceal=kind == "damaged")
        assert reader.length() == 480 * count
        block = next(iter(reader.part(frame, frame + 1)))
        assert block.first <= frame < block.first + block.frames
        found = reader.unpack(block)[0, frame - block.first, 0]
        assert found == frame % 4000 or (kind == "damaged" and block.state == "lost")
        assert file.count < (400_000 if kind in ("damaged", "metadata") else 150_000) < len(data)


@settings(max_examples=40, deadline=None)
@given(frames=st.integers(1, 700), block=st.integers(1, 40), first=st.integers(0, 699), version=st.sampled_from([1, 2]))
def test_any_part_of_any_file(frames: int, block: int, first: int, version: int) -> None:
    first = min(first, frames - 1)
    data, _ = hours(frames, version=version, block=block)
    reader = Reader(io.BytesIO(data))
    blocks = list(reader.part(first, None))
    indices = np.concatenate(reader.unpack_all(blocks), axis=1)[0, first - blocks[0].first :, 0]
    np.testing.assert_array_equal(indices, np.arange(first, frames) % 4000)
    assert reader.num_samples == 480 * frames


def test_times() -> None:
    assert seconds("1:02:03.5", "--start") == 3723.5
    assert seconds("62:03", "--start") == 3723
    assert seconds("3723", "--start") == 3723
    for text in ("", "1:2:3:4", "-1", "1:-1", "nan", "inf", "ten", "1e9:0:0"):
        with pytest.raises(UsageError, match="is no time"):
            seconds(text, "--start")


def test_the_command_decodes_a_part(run: Run, tiny: Path, tiny_codec: Codec, tmp_path: Path) -> None:
    path, wav, whole = tmp_path / "long.q2d", tmp_path / "part.wav", tmp_path / "whole.wav"
    long_tokens(tiny_codec, 12.0, 16_000).save(path)
    assert run("decode", "-m", tiny, path, whole).returncode == 0
    result = run("decode", "--start", "0:10.5", "--duration", "1", "-m", tiny, "--json", path, wav)
    assert result.returncode == 0, result.stderr.decode()
    assert json.loads(result.stdout)["duration"] == 1.0
    np.testing.assert_array_equal(
        soundfile.read(wav, dtype="int16")[0], soundfile.read(whole, dtype="int16")[0][168_000:184_000]
    )
    result = run("decode", "--start", "12", "-m", tiny, path, tmp_path / "none.wav")
    assert result.returncode == 2
    assert b"nothing at 12.0 s" in result.stderr
    assert not (tmp_path / "none.wav").exists()
