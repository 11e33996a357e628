"""Tokens per second of a loop over `Codec.encode` and of `Codec.encode_batch`, against the number of clips in a batch.

    python benchmarks/batches.py [MODEL] [THREADS]

Loop and batch take turns in one process, and the best of several rounds counts, so that what else the machine does
matters little. With fewer free cores than threads the times say nothing.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import torch

from q2d2cli import DEFAULT_MODEL, Codec
from q2d2cli.audio import read_mono

ROUNDS = 5
SECONDS = (1, 3, 5, 7, 10)
SIZES = (1, 4, 16)
CLIP = Path(__file__).resolve().parent.parent / "examples" / "librivox.wav"


def main() -> None:
    codec = Codec.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL, device="cpu")
    if len(sys.argv) > 2:
        torch.set_num_threads(int(sys.argv[2]))
    audio = torch.from_numpy(read_mono(CLIP, codec.sample_rate))
    print(f"{codec.name}, {torch.get_num_threads()} threads, best of {ROUNDS} rounds, frames per second\n")
    print("| seconds | clips | loop | batch | times as fast |\n|---|---|---|---|---|")
    for seconds in SECONDS:
        length = seconds * codec.sample_rate
        for size in SIZES:
            step = (len(audio) - length) // size
            batch = torch.stack([audio[number * step : number * step + length] for number in range(size)])
            loop = together = math.inf
            for _ in range(ROUNDS):
                started = time.perf_counter()
                for clip in batch:
                    codec.encode(clip, codec.sample_rate)
                between = time.perf_counter()
                codec.encode_batch(batch)
                loop, together = min(loop, between - started), min(together, time.perf_counter() - between)
            tokens = size * seconds * codec.frame_rate
            print(
                f"| {seconds} | {size} | {tokens / loop:.0f} | {tokens / together:.0f} | {loop / together:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
