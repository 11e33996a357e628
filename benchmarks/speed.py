"""Times the models that are here beside EnCodec (24 kHz, random weights: speed does not depend on them).

    python benchmarks/speed.py [CLIP]

Encoding and decoding take turns in one process, so that the ratios hold whatever else the machine does.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import EncodecConfig, EncodecModel

from q2d2cli import Codec, checkpoints
from q2d2cli.audio import read_mono

RATE = 24_000
ROUNDS = 9
CLIP = Path(__file__).resolve().parent.parent / "examples" / "librivox.wav"


def main() -> None:
    torch.manual_seed(0)
    audio = torch.from_numpy(read_mono(Path(sys.argv[1]) if len(sys.argv) > 1 else CLIP, RATE))
    seconds = len(audio) / RATE
    encodec = EncodecModel(EncodecConfig()).eval()

    def run_encodec() -> None:
        with torch.inference_mode():
            coded = encodec.encode(audio[None, None], bandwidth=3.0)
            encodec.decode(coded.audio_codes, coded.audio_scales)

    runs: dict[str, Callable[[], object]] = {"encodec": run_encodec}
    for checkpoint in checkpoints.available():
        codec = Codec.from_pretrained(checkpoint.folder, device="cpu")
        runs[codec.name] = lambda codec=codec: codec.decode(codec.encode(audio, RATE))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - started)
    reference = statistics.median(times["encodec"])
    print(f"{seconds:.1f} s of audio, {torch.get_num_threads()} threads, median of {ROUNDS} rounds")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:12} real-time factor {median / seconds:.4f}, {reference / median:.2f} times as fast as EnCodec")


if __name__ == "__main__":
    main()
