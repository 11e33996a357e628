"""Codec quality over a folder: encode, decode, measure, and count how the codebook is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from q2d2cli.audio import Resampler, read_mono
from q2d2cli.codec import Codec
from q2d2cli.errors import Q2D2Error
from q2d2cli.evaluation.codebook import pair_entropies, pair_utilization
from q2d2cli.evaluation.metrics import METRIC_RATE, METRICS


def evaluate(
    codec: Codec, files: Sequence[Path], metrics: Sequence[str], progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """Mean metrics of a codec over files.

    Args:
        codec: the codec.
        files: audio files.
        metrics: names out of `METRICS`.
        progress: called with the number of files done.

    Returns:
        For each metric its mean, 95% interval (half width) and number of files; pair entropies in
        bits and utilization in [0, 1]; `skipped` lists files that could not be read.
    """
    values: dict[str, list[float]] = {name: [] for name in metrics}
    indices: list[np.ndarray] = []
    skipped: list[str] = []
    seconds = 0.0
    for done, path in enumerate(files, 1):
        try:
            audio = read_mono(path, codec.sample_rate)
        except Q2D2Error as error:
            skipped.append(str(error))
            continue
        tokens = codec.encode(audio, codec.sample_rate)
        decoded = codec.decode(tokens).numpy()[0]
        seconds += tokens.duration
        indices.append(tokens.indices.numpy()[0])
        reference, degraded = (
            Resampler(codec.sample_rate, METRIC_RATE, 1).push(signal[None], last=True)[0] for signal in (audio, decoded)
        )
        for name in metrics:
            value = METRICS[name](reference, degraded)
            if value is not None:
                values[name].append(value)
        if progress:
            progress(done)
    if not indices:
        raise Q2D2Error(f"none of the {len(files)} files could be read: {skipped[0]}")
    sizes = codec.quantizer.sizes
    frames = np.concatenate(indices)
    result: dict[str, Any] = {"model": codec.name, "fingerprint": codec.fingerprint.hex(), "files": len(indices)}
    result |= {"minutes": round(seconds / 60, 2), "skipped": skipped}
    for name, scores in values.items():
        if scores:
            spread = float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan
            half = 1.96 * spread / math.sqrt(len(scores))
            result[name] = {
                "mean": round(float(np.mean(scores)), 4),
                "interval95": None if math.isnan(half) else round(half, 4),
                "n": len(scores),
            }
    result["pair_entropy"] = [round(entropy, 3) for entropy in pair_entropies(frames, sizes)]
    result["pair_entropy_max"] = [round(math.log2(size), 3) for size in sizes]
    result["pair_utilization"] = [round(share, 4) for share in pair_utilization(frames, sizes)]
    return result
