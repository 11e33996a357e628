"""What people really feed a codec: nothing may come back as a burst or a level jump, from any shipped model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import soundfile
import soxr
from conftest import CLIP

from q2d2cli import Codec, checkpoints

RATE = 24_000
WINDOW = RATE // 10
FLOOR = -80.0


@pytest.fixture(scope="module", params=[checkpoint.config.name for checkpoint in checkpoints.available()])
def codec(request: pytest.FixtureRequest) -> Codec:
    return Codec.from_pretrained(request.param, device="cpu")


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    audio, rate = soundfile.read(CLIP, dtype="float32")
    return soxr.resample(audio, rate, RATE)[: 4 * RATE]


def band(x: np.ndarray, low: float, high: float) -> np.ndarray:
    spectrum = np.fft.rfft(x)
    frequencies = np.fft.rfftfreq(len(x), 1 / RATE)
    return np.fft.irfft(spectrum * ((frequencies >= low) & (frequencies <= high)), len(x))


def hiss(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=count)


CASES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda x: x,
    "quiet": lambda x: 0.02 * x,
    "loud": lambda x: x / np.abs(x).max(),
    "clipped": lambda x: np.clip(20 * x, -1, 1),
    "telephone": lambda x: band(x, 300, 3400),
    "child": lambda x: soxr.resample(x, RATE, 17_000),
    "shouted": lambda x: np.tanh(8 * x),
    "two at once": lambda x: x + np.roll(x[::-1], RATE),
    "a little noise": lambda x: x + 0.003 * hiss(len(x)),
    "whispered": lambda x: (
        hiss(len(x))
        * np.convolve(np.abs(x), np.ones(480) / 480, "same")
        * (0.3 + np.abs(np.sin(np.arange(len(x)) / 3000)))
    ),
    "music": lambda x: sum(
        0.1 * np.sin(2 * np.pi * f * np.arange(len(x)) / RATE) * np.exp(-3 * (2 * np.arange(len(x)) / RATE % 1))
        for f in (220, 277, 330, 440)
    ),
    "noise": lambda x: 0.05 * hiss(len(x)),
}


def levels(audio: np.ndarray) -> np.ndarray:
    """`(samples,)` to the level of each tenth of a second, dB."""
    windows = audio[: len(audio) // WINDOW * WINDOW].reshape(-1, WINDOW)
    return np.maximum(20 * np.log10(np.sqrt(np.mean(windows**2, axis=1)) + 1e-9), FLOOR)


@pytest.mark.parametrize("case", CASES)
def test_no_burst_and_no_level_jump(codec: Codec, voice: np.ndarray, case: str) -> None:
    before = CASES[case](voice).astype(np.float32)
    after = codec.decode(codec.encode(before, RATE)).numpy()[0]
    assert np.isfinite(after).all()
    given, got = levels(before), levels(after)
    assert got.max() < given.max() + 4
    # No window sticks out above all of the input.
    assert (got - np.maximum(given, given.max() - 25)).max() < 8
    if case not in {"music", "clipped", "shouted"}:
        assert abs(np.median(got[given > given.max() - 20] - given[given > given.max() - 20])) < 4


@pytest.mark.parametrize("cut", [0.4, 0.9, 1.3, 1.77, 2.2, 2.61, 3.03, 3.5])
def test_no_click_where_a_file_is_cut(codec: Codec, voice: np.ndarray, cut: float) -> None:
    at = int(cut * RATE)
    for before, ends in ((voice[:at], slice(-RATE // 50, None)), (voice[at:], slice(0, RATE // 50))):
        after = codec.decode(codec.encode(before, RATE)).numpy()[0]
        near = before[-RATE // 10 :] if ends.start else before[: RATE // 10]
        peak = np.abs(near).max() + 0.002
        assert np.abs(after[ends]).max() < 3 * peak


def test_bfloat16_is_not_heard(codec: Codec, voice: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = codec.encode(voice, RATE)
    audio = codec.decode(tokens)
    monkeypatch.setenv("Q2D2_BFLOAT16", "0")
    assert (codec.encode(voice, RATE).indices == tokens.indices).all()
    error = codec.decode(tokens) - audio
    assert 20 * np.log10(float(error.norm() / audio.norm()) + 1e-9) < -40


@pytest.mark.parametrize("dither", [0.0, 1e-5])
def test_silence_stays_silence(codec: Codec, dither: float) -> None:
    silence = (dither * hiss(2 * RATE)).astype(np.float32)
    after = codec.decode(codec.encode(silence, RATE)).numpy()[0]
    assert levels(after).max() < -60


def test_silence_between_words_stays_silent(codec: Codec, voice: np.ndarray) -> None:
    pause = np.concatenate([voice[:RATE], np.zeros(RATE, np.float32), voice[RATE : 2 * RATE]])
    after = codec.decode(codec.encode(pause, RATE)).numpy()[0]
    assert levels(after[RATE + RATE // 4 : 2 * RATE - RATE // 4]).max() < -60
