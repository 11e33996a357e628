"""Codec quality over a folder: encode, decode, measure, and count how the codebook is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from q2d2cli.audio import Resampler, read_mono
from q2d2cli.codec import Codec
from q2d2cli.errors import Q2D2Error
from q2d2cli.evaluation.codebook import pair_entropies, pair_utilization
from q2d2cli.evaluation.metrics import METRIC_RATE, METRICS


def evaluate(
    codec: Codec,
    folder: Path,
    files: Sequence[Path],
    metrics: Sequence[str],
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Mean metrics of a codec over files.

    Args:
        codec: the codec.
        folder: where the files are; results are also grouped by its subfolders (speakers, say).
        files: audio files below `folder`.
        metrics: names out of `METRICS`.
        progress: called with the number of files done.

    Returns:
        For each metric its mean, 95% interval (half width) and number of files where it is
        defined; the same by subfolder; pair entropies in bits and utilization in [0, 1];
        `skipped` lists files that could not be read.

    Raises:
        Q2D2Error: if no file could be read.
    """
    scores: list[tuple[str, dict[str, float | None]]] = []
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
        group = path.relative_to(folder).parts[0] if path.parent != folder else "."
        scores.append((group, {name: METRICS[name](reference, degraded) for name in metrics}))
        if progress:
            progress(done)
    if not indices:
        raise Q2D2Error(f"none of the {len(files)} files could be read: {skipped[0]}")
    sizes = codec.quantizer.sizes
    frames = np.concatenate(indices)
    return {
        "model": codec.name,
        "fingerprint": codec.fingerprint.hex(),
        "files": len(indices),
        "minutes": round(seconds / 60, 2),
        "skipped": skipped,
        **{name: summarize(values[name] for _, values in scores) for name in metrics},
        "groups": {
            group: {name: summarize(values[name] for other, values in scores if other == group) for name in metrics}
            for group in sorted({group for group, _ in scores})
        },
        "pair_entropy": [round(entropy, 3) for entropy in pair_entropies(frames, sizes)],
        "pair_entropy_max": [round(math.log2(size), 3) for size in sizes],
        "pair_utilization": [round(share, 4) for share in pair_utilization(frames, sizes)],
    }


def summarize(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """Mean, half width of its 95% interval (normal approximation) and count of the defined values."""
    defined = [value for value in values if value is not None]
    if not defined:
        return {"mean": None, "interval95": None, "n": 0}
    half = 1.96 * float(np.std(defined, ddof=1)) / math.sqrt(len(defined)) if len(defined) > 1 else None
    return {
        "mean": round(float(np.mean(defined)), 4),
        "interval95": None if half is None else round(half, 4),
        "n": len(defined),
    }


def spread(files: Sequence[Path], limit: int | None) -> list[Path]:
    """At most `limit` of the files of each folder, evenly spaced in sorted order: the same ones every time."""
    if limit is None:
        return list(files)
    chosen: list[Path] = []
    for folder in sorted({path.parent for path in files}):
        here = sorted(path for path in files if path.parent == folder)
        count = min(limit, len(here))
        chosen += [here[i * len(here) // count] for i in range(count)]
    return chosen
