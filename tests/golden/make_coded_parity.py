"""Wrote the golden entropy-coded file with parity and coded-parity.json, once; refuses to write them again."""

from __future__ import annotations

import io
import json
from pathlib import Path

from make_coded import SPECS, WEIGHTS, draw, numbers, vector

from q2d2cli.container.coding import library
from q2d2cli.container.coding.blocks import BlockCoder
from q2d2cli.container.header import Header
from q2d2cli.container.stream import Writer

HERE = Path(__file__).parent
NAME, SAMPLES, SHARE = "coded-parity", 12_000, 0.3


def main() -> None:
    model = library.open_folder(HERE / "contexts" / "adaptive", WEIGHTS)
    assert model is not None
    header = Header(
        quantizer=SPECS["adaptive"],
        hop=48,
        sample_rate=24_000,
        model="golden",
        fingerprint=WEIGHTS,
        original_rate=24_000,
        channels=1,
        num_samples=SAMPLES,
        frames_per_block=20,
        payload="coded",
        context=model.fingerprint,
    )
    indices = draw(BlockCoder(model), NAME, 1, header.frames_for(SAMPLES))
    for pair, size in enumerate(model.sizes):
        shape = indices[:, 40:90, pair].shape
        indices[:, 40:90, pair] = numbers(f"{NAME}{pair}", *shape, low=0, high=size - 1)
    file = io.BytesIO()
    writer = Writer(file, header, parity=SHARE)
    writer.write(indices)
    writer.close(SAMPLES)
    with (HERE / f"{NAME}.q2d").open("xb") as target:
        target.write(file.getvalue())
    with (HERE / f"{NAME}.json").open("x") as text:
        json.dump(vector(file.getvalue()) | {"parity": SHARE}, text)
        text.write("\n")


if __name__ == "__main__":
    main()
