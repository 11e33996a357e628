"""What goes into `encode` and `decode` through the real command: pipes, raw PCM, folders, names."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import CLIP, Run

SECOND = slice(16_000, 32_000)


def test_raw_pcm_in_and_out_of_pipes(run: Run, tiny: Path, clip: tuple[np.ndarray, int]) -> None:
    stereo = np.stack([clip[0][SECOND], clip[0][:16_000]], axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, stereo, 16_000, format="WAV", subtype="FLOAT")
    expected = run("encode", "-", "-", "-m", tiny, stdin=buffer.getvalue())
    floats = ("--raw", "--sample-format", "f32le")
    raw = run(
        "encode", *floats, "--rate", "16000", "--channels", "2", "-", "-", "-m", tiny,
        stdin=stereo.astype("<f4").tobytes(),
    )  # fmt: skip
    assert raw.returncode == 0, raw.stderr.decode()
    assert raw.stdout == expected.stdout

    wav = run("decode", "-", "-", "-m", tiny, stdin=raw.stdout).stdout
    pcm = run("decode", "--raw", "-", "-", "-m", tiny, stdin=raw.stdout).stdout
    assert pcm == wav[44:]
    exact = np.frombuffer(run("decode", *floats, "-", "-", "-m", tiny, stdin=raw.stdout).stdout, "<f4")
    np.testing.assert_allclose(exact, np.frombuffer(pcm, "<i2") / 32767, atol=1 / 32767)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "--raw"], "--rate"),
        (["encode", "--rate", "8000"], "--raw"),
        (["encode", "--raw", "--rate", "0"], "--rate"),
        (["encode", "--raw", "--rate", "8000", "--channels", "65"], "--channels"),
        (["encode", "--raw", "--rate", "8000", "--sample-format", "u8"], "s16le, f32le"),
        (["decode", "--sample-format", "f32le"], "--raw"),
    ],
)
def test_raw_options_that_make_no_sense(run: Run, arguments: list[str], words: str) -> None:
    result = run(*arguments, CLIP, "out")
    assert result.returncode == 2
    (line,) = result.stderr.decode().splitlines()
    assert words in line


def test_a_file_that_is_cut_off_is_encoded_with_a_warning(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.wav").write_bytes(CLIP.read_bytes()[:64_044])
    audio, rate = soundfile.read(CLIP)
    soundfile.write(tmp_path / "cut.flac", audio, rate)
    data = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 3])
    for name, target in (("cut.wav", "a.q2d"), ("cut.flac", "b.q2d"), ("cut.flac", "-")):
        result = run("encode", tmp_path / name, target, "-m", tiny, "-q", "--json")
        assert result.returncode == 0
        warning, *rest = result.stderr.decode().splitlines()
        assert "is damaged or cut off" in warning
        summary = json.loads(rest[0] if target == "-" else result.stdout)
        assert len(summary["warnings"]) == 1
        q2d = {"stdin": result.stdout} if target == "-" else {}
        facts = json.loads(run("info", target, "--json", **q2d).stdout)
        assert facts["duration"] == pytest.approx(summary["duration"])
        assert facts["duration"] < 5
