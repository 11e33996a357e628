"""Wrote the golden files of payload mode 1 and robust.json and labellings.json, once; refuses to write them again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from make import MARK, vector

from q2d2cli.container.channel import Channel, damage_file
from q2d2cli.container.header import Header
from q2d2cli.container.labelling import labellings
from q2d2cli.container.stream import Reader, Writer
from q2d2cli.quantizers.spec import QuantizerSpec

HERE = Path(__file__).parent
CASES = {
    # name: kind, levels, hop, original rate, channels, samples, frames per block, bit error rate, packet loss
    "robust-rhombic-mono": ("rhombic", (9, 9, 7, 7, 7, 7), 144, 16_000, 1, 5_000, 20, None, None),
    "robust-rectangular-stereo": ("rectangular", (4, 3, 4, 4), 450, 44_100, 2, 12_345, 7, None, None),
    "robust-hexagonal-bits-flipped": ("hexagonal", (8, 8, 5, 5), 72, 24_000, 1, 7_000, 10, 0.01, None),
    "robust-fsq-blocks-lost": ("fsq", (8, 5, 5), 144, 8_000, 2, 4_000, 10, None, 0.5),
    "robust-rvq": ("rvq", (300, 300), 144, 8_000, 1, 1_000, 10, 0.02, None),
}
GRIDS = [(kind, (level, level)) for kind in ("rectangular", "rhombic", "hexagonal") for level in (3, 7, 9, 11)]
GRIDS += [
    ("rectangular", (4, 3)),
    ("rhombic", (5, 7)),
    ("rhombic", (13, 13)),
    ("fsq", (2, 3, 5, 7, 8, 12)),
    ("vq", (5,)),
]


def main() -> None:
    vectors = {}
    for seed, (name, case) in enumerate(CASES.items()):
        kind, levels, hop, rate, channels, samples, block, ber, loss = case
        spec = QuantizerSpec(kind, levels)
        header = Header(spec, hop, 24_000, "golden", MARK, rate, channels, samples, block, payload="robust")
        rng = np.random.default_rng(seed)
        shape = (channels, header.frames_for(samples))
        indices = np.stack([rng.integers(0, size, shape) for size in spec.sizes], axis=-1)
        path = HERE / f"{name}.q2d"
        with path.open("xb") as file:
            writer = Writer(file, header)
            writer.write(indices)
            writer.close(samples)
        if ber or loss:
            path.write_bytes(damage_file(path.read_bytes(), Channel(ber, loss, rng)))
        with path.open("rb") as file:
            reader = Reader(file)
            blocks = [reader.unpack(part) for part in reader.blocks()]
        vectors[name] = vector(header, np.concatenate(blocks, axis=1)) | {
            "damaged_blocks": reader.damaged_blocks,
            "lost_blocks": reader.lost_blocks,
        }
    tables = [
        {
            "kind": kind,
            "levels": levels,
            "codes": [labelling.codes.tolist() for labelling in labellings(QuantizerSpec(kind, levels))],
            "points": [labelling.points.tolist() for labelling in labellings(QuantizerSpec(kind, levels))],
        }
        for kind, levels in GRIDS
    ]
    for name, content in (("robust", vectors), ("labellings", tables)):
        with (HERE / f"{name}.json").open("x") as file:
            json.dump(content, file)
            file.write("\n")


if __name__ == "__main__":
    main()
