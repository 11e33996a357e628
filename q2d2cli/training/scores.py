"""Metrics of audio quality at a validation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from q2d2cli.audio import read_mono
from q2d2cli.evaluation.metrics import score
from q2d2cli.evaluation.statistics import summarize

CLIP_SECONDS = 10.0
"""At most so much of a recording is heard at a validation."""


def validation_clips(paths: Sequence[Path], count: int, rate: int, device: torch.device) -> list[Tensor]:
    """The beginnings of at most `count` of the files, evenly spaced in sorted order: `(samples,)` each at `rate` Hz."""
    files = sorted(paths)
    count = min(count, len(files))
    chosen = [files[i * len(files) // count] for i in range(count)]
    return [torch.from_numpy(read_mono(path, rate)[: int(CLIP_SECONDS * rate)]).to(device) for path in chosen]


def measure(
    metrics: Sequence[str], rate: int, references: Iterable[Tensor], estimates: Iterable[Tensor]
) -> dict[str, float | None]:
    """Means over signals.

    Args:
        metrics: names of what is measured.
        rate: of the signals, Hz.
        references: `(samples,)` each.
        estimates: of the same lengths.

    Returns:
        The mean of each metric, None where it is undefined.
    """
    rows = [
        score(metrics, a.float().cpu().numpy(), b.float().cpu().numpy(), rate)
        for a, b in zip(references, estimates, strict=True)
    ]
    return {
        name: summarize([row.values[name] for row in rows], [row.weights.get(name, 1.0) for row in rows])["mean"]
        for name in metrics
    }
