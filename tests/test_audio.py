"""Audio in and out: resampling in pieces, formats, WAV headers."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import CLIP
from hypothesis import given, settings
from hypothesis import strategies as st

from q2d2cli import Q2D2Error, UsageError
from q2d2cli.audio import AudioReader, RawFormat, Resampler, WavWriter, output_format, read_mono


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


FORMATS = ["wav", "flac", "ogg", "opus", "mp3", "aiff", "au", "caf", "w64", "m4a", "wma", "webm", "mkv", "mp4", "mov"]


def written(folder: Path, name: str) -> Path:
    """Two seconds of speech in the format of the name's suffix, by ffmpeg."""
    path = folder / name
    command = ["ffmpeg", "-v", "error", "-y", "-i", CLIP, "-t", "2", "-ac", "1", path]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def read_all(path: Path, raw: RawFormat | None = None) -> tuple[np.ndarray, list[str]]:
    with AudioReader(path, raw) as reader:
        samples = np.concatenate(list(reader.blocks()), axis=1)
        assert reader.num_samples in (None, samples.shape[1])
    return samples, reader.warnings


def through_pipe(path: Path) -> tuple[np.ndarray, list[str]]:
    """The same from a named pipe, as from `<(cat ...)`."""
    pipe = path.with_name("pipe")
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError):
            pipe.write_bytes(path.read_bytes())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        return read_all(pipe)
    finally:
        writer.join()


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_from_files_and_pipes(tmp_path: Path, capfd: pytest.CaptureFixture[str], suffix: str) -> None:
    path = written(tmp_path, f"a.{suffix}")
    samples, warnings = read_all(path)
    assert len(read_mono(path, 8000)) / 8000 == pytest.approx(2, abs=0.1)
    assert np.abs(samples).max() > 0.1
    piped, more = through_pipe(path)
    np.testing.assert_array_equal(samples, piped)
    assert warnings == more == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "aiff", "au", "w64"])
def test_what_is_cut_off_is_read_as_far_as_it_goes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], suffix: str, piped: bool
) -> None:
    path = written(tmp_path, f"a.{suffix}")
    whole, _ = read_all(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    samples, (warning,) = through_pipe(path) if piped else read_all(path)
    assert 0.45 * whole.shape[1] < samples.shape[1] < 0.65 * whole.shape[1]
    np.testing.assert_allclose(samples[0, :16_000], whole[0, :16_000], atol=1e-4)
    assert "is damaged or cut off" in warning
    assert f"took the {samples.shape[1] / 16_000:.2f} s that are there" in warning
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_garbage_inside_ends_the_audio_with_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], suffix: str
) -> None:
    path = written(tmp_path, f"a.{suffix}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(data)
    samples, (warning,) = read_all(path)
    assert 8_000 < samples.shape[1] < 32_000
    assert "is damaged or cut off" in warning
    assert capfd.readouterr() == ("", "")


def wav_bytes(data: int | None = None, riff: int | None = None, rate: int = 16_000, channels: int = 1) -> bytes:
    """16-bit WAV of a second of noise whose header says what is wanted."""
    body = np.random.default_rng(0).integers(-9000, 9000, 16_000).astype("<i2").tobytes()
    sizes = (36 + len(body) if riff is None else riff), (len(body) if data is None else data)
    head = struct.pack("<4sI4s4sIHHII", b"RIFF", sizes[0], b"WAVE", b"fmt ", 16, 1, channels, rate, rate * 2 % 2**32)
    return head + struct.pack("<HH4sI", 2 * channels % 65536, 16, b"data", sizes[1]) + body


@pytest.mark.parametrize(
    ("data", "riff"),
    [(0, 0), (0, 36), (0, 2**32 - 1), (2**32 - 1, 2**32 - 1), (2**31, 2**31 + 36), (0x7FFFF000, 0x7FFFF024)],
)
def test_a_wav_that_does_not_know_its_length_is_taken_as_it_is(tmp_path: Path, data: int, riff: int) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(data, riff))
    for samples, warnings in (read_all(path), through_pipe(path)):
        np.testing.assert_array_equal((samples[0] * 32768).astype("<i2").tobytes(), wav_bytes()[44:])
        assert warnings == []


def test_a_wav_that_says_less_than_follows_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav_bytes(3200, 3236))
    samples, (warning,) = read_all(tmp_path / "a.wav")
    assert samples.shape == (1, 1600)
    assert "28800 bytes follow" in warning


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wav_bytes(rate=0), "sample rate of 0 Hz"),
        (wav_bytes(rate=2**32 - 1), "sample rate of 4294967295 Hz"),
        (wav_bytes(rate=10**9), "sample rate of 1000000000 Hz"),
        (wav_bytes(channels=0), "0 channels"),
        (wav_bytes(channels=255), "255 channels"),
        (wav_bytes(0)[:44], "no samples"),
        (wav_bytes()[:44], "it declares"),
        (wav_bytes()[:20], "cannot read"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "cannot read"),
        (b"fLaC" + bytes(100), "cannot read"),
        (b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(1000), "cannot read"),
    ],
    ids=["0 Hz", "4 GHz", "1 GHz", "0 channels", "255 channels", "empty", "header", "cut", "playlist", "flac", "mp3"],
)
def test_hostile_files_end_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes, message: str
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    for read in (read_all, through_pipe):
        with pytest.raises(Q2D2Error, match=message) as error:
            read(path)
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_without_ffmpeg_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "a.m4a")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Q2D2Error, match="ffmpeg, which reads more formats, is not installed"):
        AudioReader(path)


def test_samples_far_above_full_scale_are_warned_of(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 8000)
    for scale, count in ((1.5, 0), (32768.0, 1)):
        soundfile.write(tmp_path / "a.wav", noise * scale, 16_000, subtype="FLOAT")
        assert len(read_all(tmp_path / "a.wav")[1]) == count


@pytest.mark.parametrize(("subtype", "kind"), [("PCM_16", "<i2"), ("FLOAT", "<f4")])
def test_raw_pcm(tmp_path: Path, subtype: str, kind: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, (4000, 2))
    scaled = noise * 32768 if kind == "<i2" else noise
    path = tmp_path / "a.pcm"
    path.write_bytes(scaled.astype(kind).tobytes() + b"x")  # and a byte of a sample that never came
    samples, _ = read_all(path, RawFormat(8000, 2, subtype))
    np.testing.assert_allclose(samples.T, noise, atol=1e-4)
