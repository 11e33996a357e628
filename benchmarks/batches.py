"""Tokens per second of a loop over `Codec.encode` and of `Codec.encode_batch`, against the number of clips in a batch.

    python benchmarks/batches.py [MODEL] [THREADS]

Loop and batch take turns in one process, so that the ratios hold whatever else the machine does.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import torch

from q2d2cli import DEFAULT_MODEL, Codec
from q2d2cli.audio import read_mono

ROUNDS = 5
CLIP = Path(__file__).resolve().parent.parent / "examples" / "librivox.wav"


def main() -> None:
    codec = Codec.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL, device="cpu")
    if len(sys.argv) > 2:
        torch.set_num_threads(int(sys.argv[2]))
    audio = torch.from_numpy(read_mono(CLIP, codec.sample_rate))
    print(f"{codec.name}, {torch.get_num_threads()} threads, median of {ROUNDS} rounds, tokens (frames) per second")
    for seconds in (1.0, 3.0, 6.0):
        length = round(seconds * codec.sample_rate)
        for size in (1, 4, 16):
            step = (len(audio) - length) // size
            batch = torch.stack([audio[number * step : number * step + length] for number in range(size)])
            loop, together = [], []
            for number in range(ROUNDS + 1):
                started = time.perf_counter()
                for clip in batch:
                    codec.encode(clip, codec.sample_rate)
                between = time.perf_counter()
                codec.encode_batch(batch)
                if number:  # the first round warms up
                    loop.append(between - started)
                    together.append(time.perf_counter() - between)
            tokens = size * seconds * codec.frame_rate
            one, all_ = tokens / statistics.median(loop), tokens / statistics.median(together)
            print(
                f"{size:3} clips of {seconds:.0f} s: loop {one:6.0f}, batch {all_:6.0f}, {all_ / one:.2f} times as fast"
            )


if __name__ == "__main__":
    main()
