"""Time to the first sample of a part in the middle of files of any length, and bytes read for it.

python benchmarks/seek.py [--hours 0.02 1 10] [--model speech-3k]
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from q2d2cli import Codec
from q2d2cli.container.stream import Reader, Writer

PART_SECONDS = 0.1


class Counting(io.FileIO):
    """A file that counts what is read of it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        self.count += len(data)
        return data


def write(codec: Codec, path: Path, seconds: float) -> None:
    """Random tokens, written in pieces; packed, because that is written faster."""
    header = codec.header(16_000, 1, round(seconds * 16_000), "packed")
    rng = np.random.default_rng(0)
    left = header.frames_for(header.num_samples or 0)
    with path.open("wb") as file:
        writer = Writer(file, header)
        while left:
            frames = min(left, 100_000)
            writer.write(np.stack([rng.integers(0, size, (1, frames)) for size in header.quantizer.sizes], axis=-1))
            left -= frames
        writer.close(header.num_samples or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, nargs="+", default=[1 / 60, 1, 10])
    parser.add_argument("--model", default="speech-3k")
    arguments = parser.parse_args()
    codec = Codec.from_pretrained(arguments.model, "cpu")
    print("| length | file, bytes | bytes read | time to the first sample, s | of the processor, s |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for hours in arguments.hours:
            path = Path(folder) / "long.q2d"
            write(codec, path, hours * 3600)
            times, busy = [], []
            for _ in range(3):
                started, began = time.monotonic(), time.process_time()
                with Counting(str(path)) as file:
                    reader = Reader(file)
                    begin = round(hours * 3600 * 0.6 * 16_000)
                    decoder = codec.stream_decoder(reader.header, start=begin)
                    heard = first_piece(reader, decoder)
                times.append(time.monotonic() - started)
                busy.append(time.process_time() - began)
                assert heard.shape[1] >= PART_SECONDS * 16_000
            row = f"{hours:.2f} h | {path.stat().st_size} | {file.count} | {min(times):.2f} | {min(busy):.2f}"
            print(f"| {row} |", flush=True)


def first_piece(reader: Reader, decoder) -> np.ndarray:
    for block in reader.part(decoder.first_frame, None):
        indices = reader.unpack(block)[:, max(0, decoder.first_frame - block.first) :]
        for piece in decoder.push(indices):
            if piece.shape[1]:
                return piece
    raise AssertionError("no audio")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
