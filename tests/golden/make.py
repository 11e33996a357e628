"""Wrote the golden files and vectors.json of format version 1.0, once; refuses to write them again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from q2d2cli.container.header import Header
from q2d2cli.container.stream import Writer
from q2d2cli.quantizers.spec import QuantizerSpec

HERE = Path(__file__).parent
MARK = bytes(range(8))
CASES = {
    # name: kind, levels, hop, original rate, channels, samples, frames per block
    "rhombic-mono": ("rhombic", (9, 9, 7, 7, 7, 7), 144, 16_000, 1, 5_000, 20),
    "rectangular-stereo": ("rectangular", (4, 3, 4, 4), 450, 44_100, 2, 12_345, 7),
    "hexagonal-one-block": ("hexagonal", (8, 8, 5, 5), 72, 24_000, 1, 700, 333),
    "rhombic-no-samples": ("rhombic", (3, 5), 144, 8_000, 3, 0, 10),
}


def main() -> None:
    vectors = {}
    for seed, (name, (kind, levels, hop, rate, channels, samples, block)) in enumerate(CASES.items()):
        spec = QuantizerSpec(kind, levels)
        header = Header(spec, hop, 24_000, "golden", MARK, rate, channels, samples, block)
        frames = -(-samples * 24_000 // (rate * hop))
        rng = np.random.default_rng(seed)
        indices = np.stack([rng.integers(0, size, (channels, frames)) for size in spec.sizes], axis=-1)
        with (HERE / f"{name}.q2d").open("xb") as file:
            writer = Writer(file, header)
            writer.write(indices)
            writer.close(samples)
        vectors[name] = {
            "kind": kind,
            "levels": levels,
            "hop": hop,
            "sample_rate": 24_000,
            "model": "golden",
            "fingerprint": MARK.hex(),
            "original_rate": rate,
            "channels": channels,
            "num_samples": samples,
            "frames_per_block": block,
            "indices": indices.tolist(),
        }
    with (HERE / "vectors.json").open("x") as file:
        json.dump(vectors, file)
        file.write("\n")


if __name__ == "__main__":
    main()
