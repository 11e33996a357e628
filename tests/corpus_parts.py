"""What the tests of corpora share: short clips, the rows of an output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from q2d2cli.corpus.folder import TokenFolder

RATE = 16_000


def write_clips(folder: Path, audio: np.ndarray, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Short clips of different lengths in two folders; returns what a reader will find."""
    rng = np.random.default_rng(seed)
    clips = {}
    for number in range(count):
        name = f"{'ab'[number % 2]}/clip-{number:03}"
        start, length = rng.integers(0, 100_000), rng.integers(200, 9000)
        path = folder / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, audio[start : start + length], RATE)
        clips[name] = soundfile.read(path, dtype="float32")[0]
    return clips


def rows_of(folder: Path) -> dict[str, Any]:
    """All rows of an output, and that none is there twice."""
    tokens = TokenFolder(folder)
    rows = [row for record in tokens.records.values() for row in tokens.format.read(f"shard-{record.unit:06}")]
    assert len({row.id for row in rows}) == len(rows)
    return {row.id: row for row in rows}


def files_of(folder: Path) -> dict[str, bytes]:
    root = folder / "data"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
