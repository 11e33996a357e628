"""Augmentation of training crops: what reaches a codec is not only clean speech."""

from __future__ import annotations

import io

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor

from q2d2cli.training.config import DataConfig
from q2d2cli.training.rooms import responses

QUIET_RMS = 3e-3
"""Noise is set against at least this, so that pauses get some too."""
SPEEDS = range(16, 26)
"""In twentieths: from 0.8 to 1.25."""
SPEED_MARGIN = 8
"""Samples left out at either end, where the resampler's filter is not whole."""
MP3_DELAY = 1105
"""Samples by which LAME and its decoder are late at constant bit rates."""


def augment(batch: Tensor, config: DataConfig, sample_rate: int, seeds: np.ndarray) -> Tensor:
    """Change random crops of a batch: tones instead of speech, a room, another tilt, a narrower band, noise, coding.

    Args:
        batch: `(count, length)` float32.
        config: shares.
        sample_rate: of the crops, Hz.
        seeds: `(count,)`; decides everything about each crop, so that processes which share a batch agree.

    Returns:
        A batch of the same shape.

    Raises:
        UsageError: if the package that simulates rooms is missing.
    """
    if not (config.noise or config.band or config.tones or config.tilt or config.room or config.coded):
        return batch
    rows = []
    for crop, seed in zip(batch, seeds, strict=True):
        rng = np.random.default_rng(seed)
        choices = rng.random(4)
        # Of their own, so that the augmentations above them draw what they drew before these came.
        later = np.random.default_rng([seed, 2])
        in_room, is_coded = later.random(2) < (config.room, config.coded)
        if choices[0] < config.tones:
            crop = torch.from_numpy(tones(len(crop), sample_rate, rng)).to(batch.device)
        if in_room:
            rooms = responses(sample_rate)
            crop = heard_in(crop, torch.from_numpy(rooms[later.integers(len(rooms))]).to(batch.device))
        if choices[3] < config.tilt:
            tilted = filtered(crop, tilt(len(crop), sample_rate, rng))
            crop = tilted * (crop.square().mean() / tilted.square().mean().clamp(min=1e-12)).sqrt()
        if choices[1] < config.band:
            crop = filtered(crop, band(len(crop), sample_rate, rng))
        if choices[2] < config.noise:
            hiss = torch.from_numpy(noise(len(crop), sample_rate, rng)).to(batch.device)
            crop = crop + hiss * crop.square().mean().sqrt().clamp(min=QUIET_RMS) * 10 ** (-rng.uniform(0, 30) / 20)
        if is_coded:
            crop = torch.from_numpy(coded(crop.cpu().numpy(), sample_rate, later)).to(batch.device)
        rows.append(crop)
    return torch.stack(rows)


def length_before(length: int) -> int:
    """Samples that `change_speed` needs to make `length` at any speed."""
    return (length + 2 * SPEED_MARGIN) * SPEEDS[-1] // 20


def change_speed(batch: Tensor, length: int, share: float, seeds: np.ndarray) -> Tensor:
    """Play random crops of a batch faster or slower: another pitch and other formants, as of another speaker.

    Args:
        batch: `(count, length_before(length))` float32.
        length: samples that stay, from the beginning on.
        share: of the crops that change.
        seeds: as for `augment`.

    Returns:
        `(count, length)`.
    """
    rows = []
    for crop, seed in zip(batch, seeds, strict=True):
        # Not the same numbers that `augment` draws: the two must not go together.
        rng = np.random.default_rng([seed, 1])
        if rng.random() < share:
            crop = torchaudio.functional.resample(crop, int(rng.choice(SPEEDS)), 20)
        rows.append(crop[SPEED_MARGIN : SPEED_MARGIN + length])
    return torch.stack(rows)


def filtered(crop: Tensor, gains: Tensor) -> Tensor:
    """`(length,)` samples with `gains` put on the bins of their spectrum."""
    return torch.fft.irfft(torch.fft.rfft(crop) * gains.to(crop), len(crop))


def heard_in(crop: Tensor, response: Tensor) -> Tensor:
    """`(length,)` samples in the room of that response, at the level they had; no sound comes later or earlier."""
    size = len(crop) + len(response) - 1
    heard = torch.fft.irfft(torch.fft.rfft(crop, size) * torch.fft.rfft(response, size), size)[: len(crop)]
    return heard * (crop.square().mean() / heard.square().mean().clamp(min=1e-12)).sqrt()


def coded(crop: np.ndarray, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """`(length,)` float32 after MP3 (17 to 35 kbit/s) or Opus (6 to 26 kbit/s), as libsndfile has them.

    At sample rates that MP3 or Opus does not have nothing is changed.
    """
    opus = rng.random() < 0.5
    # As the level goes from 0 to 1, libsndfile puts Opus at 256 to 6 kbit/s, and MP3 at its highest rate to its lowest.
    level = rng.uniform(0.92, 1.0) if opus else rng.uniform(0.84, 0.95)
    how = {"format": "OGG", "subtype": "OPUS"} if opus else {"format": "MP3", "bitrate_mode": "CONSTANT"}
    peak = max(1.0, float(np.abs(crop).max()))
    file = io.BytesIO()
    try:
        soundfile.write(file, crop / peak, sample_rate, compression_level=level, **how)
    except (soundfile.LibsndfileError, ValueError):
        return crop
    file.seek(0)
    samples = soundfile.read(file, dtype="float32")[0][0 if opus else MP3_DELAY :][: len(crop)]
    return np.pad(samples * np.float32(peak), (0, len(crop) - len(samples)))


def noise(length: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """`(length,)` float32 of noise with RMS 1: white to brown, the whole band or a part of it."""
    frequencies = np.fft.rfftfreq(length, 1 / sample_rate)
    shape = np.maximum(frequencies, 30.0) ** -rng.uniform(0.0, 1.2)
    if rng.random() < 0.5:
        shape[frequencies > rng.uniform(2000, sample_rate / 2)] = 0.0
    spectrum = shape * (rng.normal(size=len(shape)) + 1j * rng.normal(size=len(shape)))
    samples = np.fft.irfft(spectrum, length)
    return (samples / max(1e-9, np.sqrt(np.mean(samples**2)))).astype(np.float32)


def tones(length: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """`(length,)` float32 of one to four notes with harmonics, held, plucked or gliding: beeps and music."""
    time = np.arange(length) / sample_rate
    samples = np.zeros(length)
    for _ in range(rng.integers(1, 5)):
        frequency = 2 ** rng.uniform(np.log2(80), np.log2(2000))
        glide = 2 ** (rng.normal(0, 0.3) * time) if rng.random() < 0.3 else np.ones(length)
        phase = 2 * np.pi * np.cumsum(frequency * glide) / sample_rate + rng.uniform(0, 2 * np.pi)
        decay = rng.uniform(0.3, 2.0)
        harmonics = np.arange(1, rng.integers(1, 12) + 1)
        harmonics = harmonics[harmonics * frequency * glide.max() < sample_rate / 2]
        note = sum(np.sin(k * phase) * k**-decay for k in harmonics)
        if rng.random() < 0.5:
            onset = rng.uniform(0, time[-1])
            note = note * np.where(time >= onset, np.exp(-(time - onset) * rng.uniform(1, 12)), 0.0)
        samples += note * rng.uniform(0.3, 1.0)
    return (0.1 * samples).astype(np.float32)


def band(length: int, sample_rate: int, rng: np.random.Generator) -> Tensor:
    """Gains of the bins of a crop's spectrum: low-pass as of old recordings, or telephone band."""
    frequencies = torch.fft.rfftfreq(length, 1 / sample_rate)
    top = rng.uniform(3000, 8000)
    gains = ((top * 1.1 - frequencies) / (0.1 * top)).clamp(0, 1)
    if rng.random() < 0.5:
        gains = gains * ((frequencies - 200) / 100).clamp(0, 1)
    return gains


def tilt(length: int, sample_rate: int, rng: np.random.Generator) -> Tensor:
    """Gains of the bins of a crop's spectrum, as of another microphone or room: a slope, and a shelf at either end."""
    frequencies = torch.fft.rfftfreq(length, 1 / sample_rate)
    decibels = rng.uniform(-3, 3) * torch.log2(frequencies.clamp(min=50) / 1000)
    low, high = ((frequencies / corner) ** 2 for corner in (rng.uniform(80, 300), rng.uniform(3000, 8000)))
    decibels += rng.uniform(-12, 12) / (1 + low) + rng.uniform(-12, 12) * high / (1 + high)
    return 10 ** (decibels / 20)
