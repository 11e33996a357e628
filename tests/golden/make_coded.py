"""Wrote the golden entropy-coded files, their context models and coded.json, once; refuses to write them again."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np
from make_version2 import vector as facts

from q2d2cli.container.coding import library
from q2d2cli.container.coding.blocks import BlockCoder
from q2d2cli.container.header import FormatError, Header
from q2d2cli.container.stream import Reader, Writer
from q2d2cli.quantizers.spec import QuantizerSpec

HERE = Path(__file__).parent
WEIGHTS = bytes(range(8))
"""Fingerprint of the codec model that there is not."""
SPECS = {
    "static": QuantizerSpec("rectangular", (4, 3, 4, 4)),
    "adaptive": QuantizerSpec("hexagonal", (5, 5, 3, 3)),
    "recurrent": QuantizerSpec("rhombic", (5, 5, 3, 3, 3, 3)),
}
CASES = {
    # name: kind of context model, original rate, channels, samples, frames per block; hop 48 at 24 kHz
    "coded-static-mono": ("static", 16_000, 1, 2_000, 25),
    "coded-adaptive-stereo": ("adaptive", 44_100, 2, 5_000, 40),
    "coded-recurrent-stereo": ("recurrent", 24_000, 2, 6_000, 30),
    "coded-recurrent-one-block": ("recurrent", 8_000, 1, 1_111, 500),
}
DAMAGED = ("coded-recurrent-truncated", "coded-recurrent-flipped", "coded-recurrent-resealed")
"""Of coded-recurrent-stereo: cut in its last data block; a bit of its second data block flipped; and the same with a
right checksum, so that it decodes to other tokens."""


def numbers(seed: str, *shape: int, low: int, high: int) -> np.ndarray:
    """Whole numbers in `[low, high]` that do not depend on any library's random numbers."""
    data = np.frombuffer(hashlib.shake_256(seed.encode()).digest(4 * math.prod(shape)), "<u4")
    return (low + data.astype(np.int64) % (high - low + 1)).reshape(shape)


def context_tensors(kind: str, sizes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A small context model of random weights."""
    if kind != "recurrent":
        tables = {f"table.{j}": numbers(f"{kind}{j}", n + 1, n, low=0, high=30) ** 2 + 1 for j, n in enumerate(sizes)}
        step = 3000 if kind == "adaptive" else 0
        return {name: table.astype(np.uint16) for name, table in tables.items()} | {"step": np.array([step], np.int32)}
    units, width, size = 16, 12, 6
    tensors = {
        "recurrent": numbers("recurrent", units, 2 * units, low=-60, high=60),
        "recurrent_bias": numbers("recurrent_bias", 2 * units, low=-(2**17), high=2**17),
    }
    for j, points in enumerate(sizes):
        tensors[f"embedding.{j}"] = numbers(f"embedding{j}", points + 1, size, low=-90, high=90)
        tensors[f"input.{j}"] = numbers(f"input{j}", size, 2 * units, low=-90, high=90)
        tensors[f"hidden.{j}"] = numbers(f"hidden{j}", units, width, low=-120, high=120)
        tensors[f"hidden_bias.{j}"] = numbers(f"hidden_bias{j}", width, low=0, high=2**16)
        tensors[f"out.{j}"] = numbers(f"out{j}", width, points, low=-60, high=60)
        tensors[f"out_bias.{j}"] = numbers(f"out_bias{j}", points, low=-(2**13), high=2**13)
        for k in range(j):
            tensors[f"within.{j}.{k}"] = numbers(f"within{j}.{k}", size, width, low=-90, high=90)
    return {name: value.astype(np.int32 if "bias" in name else np.int8) for name, value in tensors.items()}


def draw(coder: BlockCoder, name: str, channels: int, frames: int) -> np.ndarray:
    """`(channels, frames, pairs)` indices as the context model expects them: what random bytes decode to."""
    data = numbers(name, 4 * channels * frames, low=1, high=255).astype(np.uint8).tobytes()
    while True:
        try:
            return coder.decode([data], [frames], channels)[0]
        except FormatError:  # more bytes than that takes
            data = data[:-1]


def vector(data: bytes) -> dict[str, Any]:
    """What a golden file says, as its header and `(channels, frames, pairs)` indices."""
    reader = Reader(io.BytesIO(data))
    indices = np.concatenate([reader.unpack(block) for block in reader.blocks()], axis=1)
    return {**facts(reader, indices), "context": reader.header.context.hex()}


def outcome(data: bytes) -> dict[str, Any]:
    """What reading a damaged file says, and which frames come back if damage is to be concealed."""
    try:
        return vector(data)
    except FormatError as error:
        reader = Reader(io.BytesIO(data), conceal=True)
        whole = [[block.first, block.frames] for block in reader.blocks() if block.state == "whole"]
        return {"error": str(error), "whole": whole}


def main() -> None:
    files: dict[str, bytes] = {}
    for kind, spec in SPECS.items():
        folder = HERE / "contexts" / kind
        folder.mkdir(parents=True)
        path = folder / "context.safetensors"
        library.save(path, cast(library.Kind, kind), context_tensors(kind, spec.sizes), WEIGHTS)
        library.open_folder(folder, WEIGHTS)
    for name, (kind, rate, channels, samples, block) in CASES.items():
        model = library.load(HERE / "contexts" / kind / "context.safetensors")
        header = Header(
            quantizer=SPECS[kind],
            hop=48,
            sample_rate=24_000,
            model="golden",
            fingerprint=WEIGHTS,
            original_rate=rate,
            channels=channels,
            num_samples=samples,
            frames_per_block=block,
            payload="coded",
            context=model.fingerprint,
        )
        frames = header.frames_for(samples)
        indices = draw(BlockCoder(model), name, channels, frames)
        # What it does not expect takes more bytes than packed: that block is packed.
        surprise = slice(block, 2 * block)
        for pair, size in enumerate(model.sizes):
            shape = indices[:, surprise, pair].shape
            indices[:, surprise, pair] = numbers(f"{name}{pair}", *shape, low=0, high=size - 1)
        file = io.BytesIO()
        writer = Writer(file, header)
        writer.write(indices)
        writer.close(samples)
        files[name] = file.getvalue()
    whole = files["coded-recurrent-stereo"]
    blocks = list(Reader(io.BytesIO(whole)).blocks())
    coded = [block for block in blocks if not block.packed.plain]
    middle, last = coded[1], coded[-1]
    flipped = bytearray(whole)
    flipped[(middle.begin + middle.end) // 2] ^= 0x10
    resealed = bytearray(flipped)
    resealed[middle.end - 4 : middle.end] = zlib.crc32(flipped[middle.offset : middle.end - 4]).to_bytes(4, "little")
    for name, data in zip(DAMAGED, (whole[: last.begin + 9], bytes(flipped), bytes(resealed)), strict=True):
        files[name] = data
    for name, data in files.items():
        with (HERE / f"{name}.q2d").open("xb") as file:
            file.write(data)
    with (HERE / "coded.json").open("x") as text:
        json.dump({name: outcome(data) for name, data in files.items()}, text)
        text.write("\n")


if __name__ == "__main__":
    main()
