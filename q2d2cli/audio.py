"""Audio files and pipes in and out, and resampling. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr

from q2d2cli.errors import Q2D2Error

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"})


def read_mono(path: Path, sample_rate: int) -> np.ndarray:
    """A whole file as `(samples,)` float32 at `sample_rate`, channels averaged.

    Raises:
        Q2D2Error: if the file cannot be read as audio.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise Q2D2Error(f"cannot read {path} as audio: {error}") from error
    mono = samples.mean(axis=1)
    return mono if rate == sample_rate else soxr.resample(mono, rate, sample_rate)
