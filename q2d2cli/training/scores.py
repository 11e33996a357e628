"""Metrics of audio quality at a validation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from q2d2cli.audio import read_mono
from q2d2cli.evaluation.clips import Clip, with_texts
from q2d2cli.evaluation.metrics import score
from q2d2cli.evaluation.statistics import summarize

CLIP_SECONDS = 10.0
"""At most so much of a recording is heard at a validation."""


class Recording(NamedTuple):
    """What validations hear of a recording."""

    audio: Tensor
    """`(samples,)`, its beginning."""
    text: str | None
    """What is said in it; None if not known, or if it goes on."""


def validation_clips(
    paths: Sequence[Path], count: int, rate: int, device: torch.device, texts: Path | None = None
) -> list[Recording]:
    """The beginnings of at most `count` of the files, evenly spaced in sorted order, at `rate` Hz.

    Raises:
        UsageError: if `texts` cannot be read, or names none of them.
    """
    files = sorted(paths)
    count = min(count, len(files))
    spaced = (files[i * len(files) // count] for i in range(count))
    chosen = [Clip(path, path.as_posix().lstrip("/")) for path in spaced]
    if texts is not None:
        chosen = with_texts(chosen, texts)
    recordings = []
    for clip in chosen:
        audio = read_mono(clip.path, rate)
        heard = audio[: int(CLIP_SECONDS * rate)]
        text = clip.text if len(heard) == len(audio) else None
        recordings.append(Recording(torch.from_numpy(heard).to(device), text))
    return recordings


def measure(
    metrics: Sequence[str],
    rate: int,
    references: Iterable[Tensor],
    estimates: Iterable[Tensor],
    texts: Iterable[str | None] | None = None,
) -> dict[str, float | None]:
    """Means over signals.

    Args:
        metrics: names of what is measured.
        rate: of the signals, Hz.
        references: `(samples,)` each.
        estimates: of the same lengths.
        texts: what is said in each, None where not known; None if in none.

    Returns:
        The mean of each metric, None where it is undefined.
    """
    said = repeat(None) if texts is None else texts
    rows = [
        score(metrics, a.float().cpu().numpy(), b.float().cpu().numpy(), rate, text)
        for (a, b), text in zip(zip(references, estimates, strict=True), said, strict=False)
    ]
    return {
        name: summarize([row.values[name] for row in rows], [row.weights.get(name, 1.0) for row in rows])["mean"]
        for name in metrics
    }
