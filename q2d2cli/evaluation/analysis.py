"""Codebook analysis over a corpus: codes and unquantized points of every frame, and the numbers from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from q2d2cli.audio import AudioReader
from q2d2cli.codec import Codec
from q2d2cli.errors import Q2D2Error
from q2d2cli.evaluation import codebook
from q2d2cli.models.model import CodecModel
from q2d2cli.models.precision import full_precision
from q2d2cli.quantizers.q2d2 import Q2D2
from q2d2cli.runtimes.pytorch import TorchNetwork
from q2d2cli.streaming import StreamEncoder

MAX_POINTS = 50_000
"""Unquantized frames that are kept; more add little to the estimates and the pictures."""


@dataclass(frozen=True, eq=False)
class Codes:
    """What the encoder made of some files.

    Attributes:
        indices: `(frames, pairs)` int32 of all files, one after the other.
        starts: where each file begins in `indices`.
        points: `(kept, pairs, 2)` float32 coordinates before quantization, in the units of the grids, of at most
            `MAX_POINTS` evenly spaced frames; None for quantizers without two-dimensional grids.
        seconds: of audio.
        skipped: why files could not be read, a line for each.
    """

    indices: np.ndarray
    starts: list[int]
    points: np.ndarray | None
    seconds: float
    skipped: list[str]


class PointNetwork(TorchNetwork):
    """Gives, for indices, `(1, frames, pairs, 2)` float32 coordinates before quantization."""

    def __init__(self, model: CodecModel, quantizer: Q2D2) -> None:
        super().__init__(model)
        self._quantizer = quantizer

    @full_precision()
    @torch.inference_mode()
    def frames_of(self, audio: Tensor) -> Tensor:
        """`(1, samples)` to `(1, frames, pairs, 2)`."""
        return self._quantizer.coordinates(self.model.encoder(self.model.pad(audio)))


class PointEncoder(StreamEncoder):
    """A stream encoder that yields `(channels, frames, pairs, 2)` float32 coordinates before quantization."""

    def __init__(self, codec: Codec, quantizer: Q2D2, sample_rate: int) -> None:
        super().__init__(PointNetwork(codec.model, quantizer), codec.header(sample_rate, 1, None))


def collect(codec: Codec, files: Sequence[Path], progress: Callable[[int], None] | None = None) -> Codes:
    """Encode files (channels averaged) in bounded memory, and keep the codes of every frame.

    Args:
        codec: the codec.
        files: audio files; those that cannot be read are left out and named.
        progress: called with the number of files done.

    Raises:
        Q2D2Error: if no file could be read.
    """
    quantizer = codec.model.quantizer if isinstance(codec.model.quantizer, Q2D2) and codec.quantizer.is_grid else None
    indices: list[np.ndarray] = []
    points: list[np.ndarray] = []
    starts, skipped = [], []
    frames, kept, every, seconds = 0, 0, 1, 0.0
    for done, path in enumerate(files, 1):
        try:
            pieces, duration = encode_file(codec, quantizer, path)
        except Q2D2Error as error:
            skipped.append(str(error))
            pieces = []
        if pieces:
            starts.append(frames)
            seconds += duration
        for piece in pieces:
            if quantizer is not None:
                chosen = piece[-frames % every :: every]
                points.append(chosen)
                kept += len(chosen)
                piece = quantizer.nearest(torch.from_numpy(piece)).numpy()
            indices.append(piece.astype(np.int32))
            frames += len(piece)
            # Every second one goes whenever there are too many: the rest stays evenly spaced.
            while kept > MAX_POINTS:
                points = [np.concatenate(points)[::2]]
                kept, every = len(points[0]), 2 * every
        if progress:
            progress(done)
    if not indices:
        raise Q2D2Error(f"none of the {len(files)} files could be read: {skipped[0]}")
    return Codes(
        np.concatenate(indices), starts, np.concatenate(points) if quantizer is not None else None, seconds, skipped
    )


def encode_file(codec: Codec, quantizer: Q2D2 | None, path: Path) -> tuple[list[np.ndarray], float]:
    """`(frames, pairs, 2)` coordinates for a grid quantizer, `(frames, pairs)` indices otherwise, and the seconds.

    Raises:
        Q2D2Error: if the file cannot be read.
    """
    with AudioReader(path) as reader:
        rate, samples = reader.sample_rate, 0
        encoder = codec.stream_encoder(rate) if quantizer is None else PointEncoder(codec, quantizer, rate)
        pieces: list[np.ndarray] = []
        for block in reader.blocks():
            samples += block.shape[1]
            pieces += encoder.push(block.mean(axis=0, keepdims=True))
        pieces += encoder.finish()
    return [piece[0] for piece in pieces], samples / rate


def analyze(codec: Codec, corpus: Codes) -> dict[str, Any]:
    """All numbers of a corpus.

    Returns:
        `pairs` as `codebook.pair_use`, each for a grid also with its `mutual_information`, see
        there; `codebook` as `codebook.codebook_use`; what was analyzed; and `skipped`.
    """
    spec = codec.quantizer
    pairs = codebook.pair_use(corpus.indices, spec.sizes, corpus.starts)
    if corpus.points is not None:
        for row, information in zip(pairs, pair_information(codec, corpus.points), strict=True):
            row["mutual_information"] = information
    return {
        "model": codec.name,
        "fingerprint": codec.fingerprint.hex(),
        "quantizer": spec.kind,
        "levels": list(spec.levels),
        "files": len(corpus.starts),
        "minutes": corpus.seconds / 60,
        "frames": len(corpus.indices),
        "skipped": corpus.skipped,
        "pairs": pairs,
        "codebook": codebook.codebook_use(corpus.indices, spec.codebook_size),
    }


def pair_information(codec: Codec, points: np.ndarray) -> list[dict[str, float | None]]:
    """Mutual information of the two coordinates of each pair (paper Figure 4), bits.

    The paper names no estimator. Here `before` quantization, where the coordinates are continuous
    (projected, after tanh and bound), it is that of Kraskov et al. with 3 neighbours; `after`, where
    they take few values, it comes from counts. `even_grid` is what the grid has by itself, were all
    its points used equally: 0 for a rectangle; about 1 bit for a rhombic or hexagonal grid, where
    one coordinate tells which of two sets of rows the other is from. Only what exceeds it speaks
    of the signal.

    Args:
        codec: a codec with a grid quantizer.
        points: `(frames, pairs, 2)` coordinates before quantization.
    """
    quantizer = codec.model.quantizer
    assert isinstance(quantizer, Q2D2)
    indices = quantizer.nearest(torch.from_numpy(points)).numpy()
    rows = []
    for j, grid in enumerate(quantizer.grids):
        places = grid.points.numpy()
        snapped = places[indices[:, j]]
        rows.append(
            {
                "before": codebook.continuous_mutual_information(points[:, j, 0], points[:, j, 1]),
                "after": codebook.mutual_information(snapped[:, 0], snapped[:, 1]),
                "even_grid": codebook.mutual_information(places[:, 0], places[:, 1]),
            }
        )
    return rows
