"""Distortion of grids and lattices at equal bits, on Gaussian numbers and on a model's latents.

python benchmarks/distortion.py [--model speech-3k] [--audio examples/librivox.wav] [--bits 2 2.2]

Every kind quantizes the same values. Each gets the scale that suits it best (the one with the least distortion), and
only the points inside the cube that its levels span. The bits are `log2(points)` per dimension; to compare kinds at
equal bits, the distortion in dB is interpolated linearly between the levels (all dimensions alike) below and above.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from q2d2cli import Codec
from q2d2cli.audio.reading import read_mono
from q2d2cli.quantizers.geometry import DIMENSIONS, count
from q2d2cli.quantizers.grids import GRIDS, Grid
from q2d2cli.quantizers.spec import MAX_LATTICE_POINTS

VALUES = 24_000
"""How many numbers are quantized; divides by all dimensions."""
SCALES = np.geomspace(0.15, 1.5, 24)
"""Of the values, as shares of half the levels for one standard deviation."""


def gaussian() -> Tensor:
    """`(VALUES,)` independent Gaussian numbers."""
    return torch.randn(VALUES, generator=torch.Generator().manual_seed(0))


def latents(model: str, audio: str) -> Tensor:
    """`(VALUES,)` projections of a model before tanh, frame by frame, each dimension of variance 1 and mean 0."""
    codec = Codec.from_pretrained(model, "cpu")
    samples = torch.from_numpy(read_mono(Path(audio), codec.sample_rate))
    hop = codec.model.config.hop
    with torch.inference_mode():
        z = codec.model.quantizer.project(codec.model.encoder(samples[None, : len(samples) // hop * hop]))[0]
    z = ((z - z.mean(0)) / z.std(0)).flatten()
    return z.repeat(math.ceil(VALUES / len(z)))[:VALUES] if len(z) < VALUES else z[:VALUES]


def distortion(grid: Grid, values: Tensor) -> float:
    """Least mean squared error in dB below the values' variance, over all scales."""
    z = values.unflatten(0, (-1, len(grid.levels)))
    errors = []
    for scale in SCALES * max(grid.levels) / 2:
        points = grid.points[grid.nearest(z * scale)]
        errors.append(float((points / scale - z).square().mean()))
    return -10 * math.log10(min(errors) / float(values.square().mean()))


def at_bits(kind: str, values: Tensor, wanted: Sequence[float]) -> list[float]:
    """The signal-to-noise ratio in dB at so many bits per dimension; nan where no levels reach."""
    size, steps = DIMENSIONS[kind], 1 if kind in ("rectangular", "hexagonal") else 2
    bits, ratios = [], []
    for level in range(2 if steps == 1 else 3, 16, steps):
        points = count(kind, *[level] * size)
        if points > MAX_LATTICE_POINTS:
            break
        bits.append(math.log2(points) / size)
        ratios.append(distortion(GRIDS[kind]((level,) * size), values))
        if bits[-1] >= max(wanted):
            break
    return np.interp(wanted, bits, ratios, left=np.nan, right=np.nan).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="speech-3k")
    parser.add_argument("--audio", default="examples/librivox.wav")
    parser.add_argument("--bits", type=float, nargs="+", default=[2, 2.2])
    arguments = parser.parse_args()
    sources = {"Gaussian": gaussian(), f"latents of {arguments.model}": latents(arguments.model, arguments.audio)}
    columns = [f"{source}, {bits:g} bits" for source in sources for bits in arguments.bits]
    print(f"| SNR, dB | dimensions | {' | '.join(columns)} |")
    print("|---" * (2 + len(columns)) + "|")
    for kind, size in DIMENSIONS.items():
        ratios = [ratio for values in sources.values() for ratio in at_bits(kind, values, arguments.bits)]
        print(f"| {kind} | {size} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |", flush=True)


if __name__ == "__main__":
    main()
