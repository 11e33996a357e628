"""What the weight of bits in the search buys: bits per frame against PESQ and STOI, as a table for docs.

    python benchmarks/rate_distortion.py --test data/speech/test

One clip of each of a few speakers, cut to some seconds, entropy coded; for each model the tokens of its encoder, and
those of `--effort` rounds of search with each weight (`q2d2 encode --lambda`). Bits are those of whole payloads. Scores
are those of `q2d2 eval`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from q2d2cli import checkpoints
from q2d2cli.audio.finding import audio_files
from q2d2cli.audio.reading import read_mono
from q2d2cli.evaluation.codecs import open_subject
from q2d2cli.evaluation.metrics import score

METRICS = ("pesq", "stoi")
RATE = 24_000


def clips(folder: Path, count: int, seconds: float) -> list[np.ndarray]:
    """One file of each of so many speakers, evenly spaced, that is long enough; its beginning."""
    speakers: dict[str, list[Path]] = {}
    for path in audio_files(folder):
        speakers.setdefault(path.parent.name, []).append(path)
    names = sorted(speakers)
    found, length = [], round(seconds * RATE)
    for i in range(min(count, len(names))):
        audio = (read_mono(path, RATE) for path in speakers[names[i * len(names) // count]])
        found.append(next((a for a in audio if len(a) >= length), None))
    return [audio[:length] for audio in found if audio is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="all that are here if none is named")
    parser.add_argument("--test", type=Path, required=True, help="audio to measure on, a folder a speaker")
    parser.add_argument("--clips", type=int, default=6, help="one of each of so many speakers")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each clip")
    parser.add_argument("--effort", type=int, default=5, help="rounds of search")
    parser.add_argument("--lambdas", default="0,0.5,1,2", help="weights, with commas between")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    audio = clips(arguments.test, arguments.clips, arguments.seconds)
    print("| weights | effort | lambda | bits a frame | saved | kbit/s | PESQ | STOI | s of work per s |")
    print("|---|---|---|---|---|---|---|---|---|")
    settings = [(0, 0.0), *((arguments.effort, float(value)) for value in arguments.lambdas.split(","))]
    for name in arguments.models or [checkpoint.config.name for checkpoint in checkpoints.available()]:
        first = None
        for effort, weight in settings:
            subject = open_subject(f"q2d2:{name}:{effort}:{weight:g}", "cpu")
            started = time.process_time()
            results = [subject.reconstruct(signal, RATE, Path()) for signal in audio]
            taken = (time.process_time() - started) / sum(map(len, audio)) * RATE
            scores = [score(METRICS, a, b.audio, RATE).values for a, b in zip(audio, results, strict=True)]
            pesq, stoi = (np.mean([row[metric] for row in scores]) for metric in METRICS)
            spent = sum(result.size.payload_bits for result in results)
            bits = spent / sum(len(result.indices) for result in results)
            rate = spent / sum(map(len, audio)) * RATE / 1000
            first = first or bits
            print(
                f"| {name} | {effort} | {weight:g} | {bits:.2f} | {1 - bits / first:.1%} | {rate:.2f} "
                f"| {pesq:.3f} | {stoi:.4f} | {taken:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
