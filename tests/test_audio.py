"""Audio in and out: resampling in pieces, formats, WAV headers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from q2d2cli import UsageError
from q2d2cli.audio import AudioReader, Resampler, WavWriter, output_format, read_mono


@settings(max_examples=30, deadline=None)
@given(
    rate=st.sampled_from([8000, 11025, 16000, 22050, 24000, 44100, 44101, 48000, 96000]),
    channels=st.integers(1, 3),
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_resampling_does_not_depend_on_the_pieces(rate: int, channels: int, sizes: list[int], seed: int) -> None:
    signal = np.random.default_rng(seed).normal(0, 0.3, (channels, sum(sizes))).astype(np.float32)
    whole = Resampler(rate, 24_000, channels).push(signal, last=True)
    pieces, stream, position = [], Resampler(rate, 24_000, channels), 0
    for size in sizes:
        pieces.append(stream.push(signal[:, position : position + size]))
        position += size
    pieces.append(stream.push(signal[:, :0], last=True))
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_resampling_keeps_the_signal_in_place() -> None:
    time = np.arange(16_000) / 16_000
    resampled = Resampler(16_000, 24_000, 1).push(np.sin(2 * np.pi * 440 * time)[None].astype(np.float32), last=True)[0]
    expected = np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)
    np.testing.assert_allclose(resampled[500:-500], expected[500:-500], atol=1e-3)


@pytest.mark.parametrize("known", [True, False])
def test_wav_writer_is_read_back_by_libsndfile(known: bool) -> None:
    samples = np.random.default_rng(0).uniform(-1.2, 1.2, (2, 777)).astype(np.float32)
    buffer = io.BytesIO()
    writer = WavWriter(buffer, 22_050, 2, 777 if known else None)
    writer.write(samples[:, :500])
    writer.write(samples[:, 500:])
    writer.close()
    buffer.seek(0)
    back, rate = soundfile.read(buffer, dtype="int16")
    assert rate == 22_050
    np.testing.assert_array_equal(back.T, (samples.clip(-1, 1) * 32767).round().astype(np.int16))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au"])
def test_reader_gives_the_same_in_any_block_size(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (9000, 2)), 16_000)
    blocks = []
    for seconds in (0.01, 0.1, 10.0):
        with AudioReader(path) as reader:
            assert (reader.sample_rate, reader.channels) == (16_000, 2)
            blocks.append(np.concatenate(list(reader.blocks(seconds)), axis=1))
    np.testing.assert_allclose(blocks[0], blocks[2], atol=1e-5)
    np.testing.assert_allclose(blocks[1], blocks[2], atol=1e-5)


def test_read_mono_averages_channels(tmp_path: Path) -> None:
    left, right = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 1000))
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 24_000, subtype="FLOAT")
    np.testing.assert_allclose(read_mono(tmp_path / "a.wav", 24_000), (left + right) / 2, atol=1e-6)


def test_output_formats() -> None:
    assert output_format(Path("a.FLAC")) == "FLAC"
    assert output_format(Path("a.opus")) == "OPUS"
    for name in ("a.xyz", "a.wav.gz"):
        with pytest.raises(UsageError, match="unknown audio format"):
            output_format(Path(name))
