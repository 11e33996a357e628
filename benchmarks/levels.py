"""How far decoded speech is from the level of what went in: quiet, ordinary, loud, clipped and telephone speech.

python benchmarks/levels.py FOLDER [--model speech-3k ...] [--clips 16]

Every clip is cut to its first two seconds and brought to each level. The level error of one is the median, over tenths
of a second within 20 dB of its loudest, of the decoded level less the given one, in dB; the table has the median over
clips.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from q2d2cli import Codec, checkpoints
from q2d2cli.audio import audio_files
from q2d2cli.audio.reading import read_mono

RATE = 24_000
WINDOW = RATE // 10


def at(level: float) -> Callable[[np.ndarray], np.ndarray]:
    """Brings speech to a level in dB below full scale (root mean square)."""
    return lambda x: np.clip(x * 10 ** (level / 20) / np.sqrt(np.mean(x**2)), -1, 1)


def telephone(x: np.ndarray) -> np.ndarray:
    spectrum, frequencies = np.fft.rfft(at(-24)(x)), np.fft.rfftfreq(len(x), 1 / RATE)
    return np.fft.irfft(spectrum * ((frequencies > 300) & (frequencies < 3400)), len(x))


CASES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "-50 dB": at(-50),
    "-36 dB": at(-36),
    "-24 dB": at(-24),
    "loud (peak at full scale)": lambda x: x / np.abs(x).max(),
    "clipped": lambda x: np.clip(20 * at(-24)(x), -1, 1),
    "telephone band": telephone,
}


def levels(audio: np.ndarray) -> np.ndarray:
    """`(samples,)` to the level of each tenth of a second, dB."""
    windows = audio[: len(audio) // WINDOW * WINDOW].reshape(-1, WINDOW)
    return 20 * np.log10(np.sqrt(np.mean(windows**2, axis=1)) + 1e-9)


def error(codec: Codec, audio: np.ndarray) -> float:
    """Level error of one clip, dB; negative if it comes back quieter."""
    given, got = levels(audio), levels(codec.decode(codec.encode(audio, RATE)).numpy()[0])
    loud = given > given.max() - 20
    return float(np.median(got[loud] - given[loud]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--model", nargs="+", default=[checkpoint.config.name for checkpoint in checkpoints.available()]
    )
    parser.add_argument("--clips", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    paths = list(audio_files(options.folder))
    clips = []
    for path in paths[:: max(1, len(paths) // (2 * options.clips))]:
        audio = read_mono(path, RATE)[: 2 * RATE]
        if len(audio) == 2 * RATE and len(clips) < options.clips:
            clips.append(audio.astype(np.float64))
    codecs = [Codec.from_pretrained(name, "cpu") for name in options.model]
    print(f"level error in dB, median of {len(clips)} clips of two seconds\n")
    print("| | " + " | ".join(codec.name for codec in codecs) + " |")
    print("|---" * (len(codecs) + 1) + "|")
    for name, case in CASES.items():
        errors = [np.median([error(codec, case(x).astype(np.float32)) for x in clips]) for codec in codecs]
        print(f"| {name} | " + " | ".join(f"{value:+.1f}" for value in errors) + " |", flush=True)


if __name__ == "__main__":
    main()
