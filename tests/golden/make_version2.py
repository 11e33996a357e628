"""Wrote the golden files of format version 2.0 and version2.json, once; refuses to write them again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from q2d2cli.container.blocks import METADATA, to_block
from q2d2cli.container.channel import Channel, damage_file
from q2d2cli.container.header import Header
from q2d2cli.container.stream import Reader, Writer
from q2d2cli.quantizers.spec import QuantizerSpec

HERE = Path(__file__).parent
MARK = bytes(range(8))
CASES = {
    # name: kind, levels, hop, original rate, channels, samples, frames per block, payload, bit error rate, packet loss
    "version2-rhombic-mono": ("rhombic", (9, 9, 7, 7, 7, 7), 144, 16_000, 1, 5_000, 20, "packed", None, None),
    "version2-rectangular-stereo": ("rectangular", (4, 3, 4, 4), 450, 44_100, 2, 12_345, 7, "packed", None, None),
    "version2-hexagonal-one-block": ("hexagonal", (8, 8, 5, 5), 72, 24_000, 1, 700, 333, "packed", None, None),
    "version2-no-samples": ("rhombic", (3, 5), 144, 8_000, 3, 0, 10, "packed", None, None),
    "version2-unknown-length": ("rhombic", (5, 5), 150, 22_255, 1, 2_000, 3, "packed", None, None),
    "version2-metadata": ("fsq", (8, 5, 5, 5), 320, 48_000, 1, 9_600, 5, "packed", None, None),
    "version2-robust-stereo": ("rectangular", (4, 3, 4, 4), 450, 44_100, 2, 12_345, 7, "robust", None, None),
    "version2-robust-bits-flipped": ("hexagonal", (8, 8, 5, 5), 72, 24_000, 1, 7_000, 10, "robust", 0.01, None),
    "version2-robust-blocks-lost": ("rvq", (300, 300), 144, 8_000, 2, 4_000, 10, "robust", None, 0.5),
}


class Pipe(io.BytesIO):
    """A file that cannot be sought in."""

    def seekable(self) -> bool:
        return False


def vector(reader: Reader, indices: np.ndarray) -> dict[str, Any]:
    """What a golden file says, as its header and `(channels, frames, pairs)` indices."""
    header = reader.header
    facts = {
        "kind": header.quantizer.kind,
        "levels": header.quantizer.levels,
        "payload": header.payload,
        "hop": header.hop,
        "sample_rate": header.sample_rate,
        "model": header.model,
        "fingerprint": header.fingerprint.hex(),
        "original_rate": header.original_rate,
        "channels": header.channels,
        "num_samples": reader.num_samples,
        "frames_per_block": header.frames_per_block,
        "indices": indices.tolist(),
    }
    if header.payload == "robust":
        facts |= {"damaged_blocks": reader.damaged_blocks, "lost_blocks": reader.lost_blocks}
    return facts


def main() -> None:
    vectors = {}
    for seed, (name, case) in enumerate(CASES.items()):
        kind, levels, hop, rate, channels, samples, block, payload, ber, loss = case
        spec = QuantizerSpec(kind, levels)
        known = None if name == "version2-unknown-length" else samples
        header = Header(
            quantizer=spec,
            hop=hop,
            sample_rate=24_000,
            model="golden",
            fingerprint=MARK,
            original_rate=rate,
            channels=channels,
            num_samples=known,
            frames_per_block=block,
            payload=payload,
        )
        rng = np.random.default_rng(seed)
        shape = (channels, header.frames_for(samples))
        indices = np.stack([rng.integers(0, size, shape) for size in spec.sizes], axis=-1)
        file = io.BytesIO() if known is not None else Pipe()
        writer = Writer(file, header)
        if name == "version2-metadata":
            comments = [b"TITLE=Golden", "ARTIST=Tülin".encode()]
            vendor = b"q2d2"
            tags = len(vendor).to_bytes(4, "little") + vendor + len(comments).to_bytes(4, "little")
            file.write(to_block(METADATA, 0, tags + b"".join(len(c).to_bytes(4, "little") + c for c in comments)))
        writer.write(indices)
        writer.close(samples)
        data = file.getvalue()
        if ber or loss:
            data = damage_file(data, Channel(ber, loss, rng))
        with (HERE / f"{name}.q2d").open("xb") as target:
            target.write(data)
        reader = Reader(io.BytesIO(data))
        empty = np.empty((channels, 0, spec.num_indices), np.int64)
        vectors[name] = vector(reader, np.concatenate([empty, *map(reader.unpack, reader.blocks())], axis=1))
    with (HERE / "version2.json").open("x") as file:
        json.dump(vectors, file)
        file.write("\n")


if __name__ == "__main__":
    main()
