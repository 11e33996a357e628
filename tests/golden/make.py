"""Wrote the golden files and vectors.json of format version 1.0, once; refuses to write them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def vector(header: Header, indices: np.ndarray) -> dict[str, Any]:
    """What a golden file says, as its header and `(channels, frames, pairs)` indices."""
    return {
        "kind": header.quantizer.kind,
        "levels": header.quantizer.levels,
        "hop": header.hop,
        "sample_rate": header.sample_rate,
        "model": header.model,
        "fingerprint": header.fingerprint.hex(),
        "original_rate": header.original_rate,
        "channels": header.channels,
        "num_samples": header.num_samples,
        "frames_per_block": header.frames_per_block,
        "indices": indices.tolist(),
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
        vectors[name] = vector(header, indices)
    with (HERE / "vectors.json").open("x") as file:
        json.dump(vectors, file)
        file.write("\n")


if __name__ == "__main__":
    main()
