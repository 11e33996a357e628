"""Training data: a folder of audio held in memory as 16-bit samples, and random crops from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from q2d2cli.audio import audio_files, read_mono
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.training.config import DataConfig


class Corpus:
    """All audio of a folder, joined to one array of int16 samples.

    Attributes:
        samples: `(n,)` int16.
        files: how many files are in it.
        broken: paths that could not be read.
    """

    def __init__(self, folder: Path, sample_rate: int, progress: Callable[[int, int], None] | None = None) -> None:
        parts: list[np.ndarray] = []
        self.broken: list[Path] = []
        paths = audio_files(folder)
        for done, path in enumerate(paths):
            if progress:
                progress(done, len(paths))
            try:
                audio = read_mono(path, sample_rate)
            except Q2D2Error:
                self.broken.append(path)
                continue
            parts.append((audio.clip(-1, 1) * 32767).round().astype(np.int16))
        if not parts:
            raise UsageError(f"none of the {len(paths)} files in {folder} could be read")
        self.files = len(parts)
        self.samples = np.concatenate(parts)

    def crops(self, count: int, length: int, config: DataConfig, rng: np.random.Generator) -> Tensor:
        """`(count, length)` float32 crops at random places and levels."""
        starts = rng.integers(0, max(1, len(self.samples) - length), count)
        batch = np.zeros((count, length), np.float32)
        for row, start in zip(batch, starts, strict=True):
            piece = self.samples[start : start + length]
            row[: len(piece)] = piece / np.float32(32768)
        rms = np.sqrt((batch**2).mean(axis=1)) + 1e-9
        peak = np.abs(batch).max(axis=1) + 1e-9
        target = 10 ** (rng.normal(config.level_mean, config.level_std, count) / 20)
        # Pauses keep their level, loud peaks stay below full scale.
        gain = np.where(rms > 1e-3, np.minimum(target / rms, 0.99 / peak), 1.0)
        quiet = rng.random(count) < config.silence
        gain = np.where(quiet, gain * 10 ** rng.uniform(-4.5, -2.0, count), gain)
        return torch.from_numpy(batch * gain[:, None].astype(np.float32))
