"""What is left of a .q2d file that was damaged: `q2d2 decode --conceal`, scored against the undamaged file's audio.

    python benchmarks/damage.py [--model NAME] [--seed N] [CLIP ...]

The clip is encoded plainly, with --parity 10%, with --robust, and with both. Then one byte in a hundred of the file,
its header and checksums among them, gets another value; a tenth of its blocks is taken out; or its second half is cut
off. "sound" is how much of the audio comes from the file and not from concealment; PESQ and STOI are those of the whole
clip, of one that was cut off those of what is left. Needs pip install "q2d2[eval]".
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from q2d2cli import Codec
from q2d2cli.checkpoints import DEFAULT_MODEL
from q2d2cli.container.stream import Reader
from q2d2cli.errors import Q2D2Error
from q2d2cli.evaluation.metrics import check_metrics, score
from q2d2cli.transcode import Summary, decode_file, encode_file

CLIP = Path(__file__).resolve().parent.parent / "examples" / "librivox.wav"
KINDS = {"plain": (None, None), "--parity 10%": (None, 0.1), "--robust": ("robust", None), "both": ("robust", 0.1)}
METRICS = ("pesq", "stoi")
Harm = Callable[[bytes, np.random.Generator], tuple[bytes, str]]


def flip(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """One byte in a hundred gets another value."""
    changed = np.frombuffer(data, np.uint8).copy()
    places = rng.choice(len(changed), len(changed) // 100, replace=False)
    changed[places] ^= rng.integers(1, 256, len(places), dtype=np.uint8)
    return changed.tobytes(), f"1% of bytes changed ({len(places)})"


def lose(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """A tenth of the data blocks is not there."""
    blocks = list(Reader(io.BytesIO(data)).blocks())
    gone = set(rng.choice(len(blocks), max(1, len(blocks) // 10), replace=False).tolist())
    parts, at = [], 0
    for number in sorted(gone):
        parts.append(data[at : blocks[number].offset])
        at = blocks[number].end
    return b"".join([*parts, data[at:]]), f"{len(gone)} of {len(blocks)} blocks lost"


def cut(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """The second half is not there."""
    return data[: len(data) // 2], "cut in the middle"


HARMS: tuple[Harm, ...] = (flip, lose, cut)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="*", default=[CLIP], metavar="CLIP")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    check_metrics(METRICS)
    codec = Codec.from_pretrained(arguments.model, "cpu")
    print("| clip | file | kbit/s | damage | sound | PESQ | STOI |\n|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for clip in arguments.clips:
            for kind in KINDS:
                measure(codec, clip, kind, arguments.seed, Path(folder))


def measure(codec: Codec, clip: Path, kind: str, seed: int, folder: Path) -> None:
    """Print the rows of one clip and one kind of file."""
    whole, bad = folder / "whole.q2d", folder / "bad.q2d"
    payload, parity = KINDS[kind]
    whole.unlink(missing_ok=True)
    summary = encode_file(codec, clip, whole, payload=payload, parity=parity)
    decoded = decode(codec, whole, folder)
    assert decoded is not None
    original, facts = decoded
    for harm in HARMS:
        data, what = harm(whole.read_bytes(), np.random.default_rng(seed))
        bad.write_bytes(data)
        row = f"| {clip.name}, {facts.duration:.1f} s | {kind} | {summary.bit_rate / 1000:.2f} | {what} |"
        print(f"{row} {outcome(decode(codec, bad, folder), original, facts)} |", flush=True)


def decode(codec: Codec, path: Path, folder: Path) -> tuple[np.ndarray, Summary] | None:
    """The audio of a file, `(samples,)` of its first channel, and what was said of it; None if it is refused."""
    target = folder / "audio.raw"
    target.unlink(missing_ok=True)
    try:
        summary = decode_file(lambda header: codec, path, target, raw="f32le", conceal=True)
    except Q2D2Error:
        return None
    return np.fromfile(target, np.float32).reshape(-1, summary.channels)[:, 0], summary


def outcome(decoded: tuple[np.ndarray, Summary] | None, original: np.ndarray, whole: Summary) -> str:
    """The last cells of a row."""
    if decoded is None:
        return f"0.0 of {whole.duration:.1f} s: refused | – | –"
    audio, summary = decoded
    truncated = sum(fault.duration or 0.0 for fault in summary.faults if fault.kind == "truncated")
    sound = f"{summary.duration + truncated - summary.lost_seconds:.1f} of {whole.duration:.1f} s"
    if np.array_equal(audio, original):
        return f"{sound}: mended, every sample | – | –"
    values = score(METRICS, original[: len(audio)], audio, whole.sample_rate).values
    cells = [
        "–" if value is None else f"{value:.{digits}f}" for value, digits in zip(values.values(), (2, 3), strict=True)
    ]
    return f"{sound} | {' | '.join(cells)}"


if __name__ == "__main__":
    main()
