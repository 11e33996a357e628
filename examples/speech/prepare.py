"""Fetch the speech corpus of the shipped models from Debian packages and lay it out for training.

    python examples/speech/prepare.py data/speech

Needs a Debian or Ubuntu machine (`apt-get`, `dpkg-deb`), `ffmpeg` (for G.722 only) and about
3 GB of disk. The result is

    data/speech/{train,valid,test}/SPEAKER/*.flac      24 kHz, mono, 16 bit
    data/speech/corpus.json                            minutes and files per speaker

The split is by whole speakers. `valid` chooses checkpoints; `test` is only ever measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 24_000

PACKAGES = (
    "tuxpaint-stamps-default",
    "fillets-ng-data-cs",
    "fillets-ng-data-nl",
    "festvox-ru",
    "klettres-data",
    "ktuberling-data",
    "asterisk-core-sounds-en-g722",
    "asterisk-core-sounds-es-g722",
    "asterisk-core-sounds-fr-g722",
    "asterisk-core-sounds-it-g722",
    "asterisk-core-sounds-ru-g722",
    "pocketsphinx-testdata",
    "hedgewars-data",
)

# The same voice ("Allison") recorded the English and the Spanish prompts: both are held out.
TEST = {
    "asterisk-en": "English, studio prompts",
    "asterisk-es": "Spanish, studio prompts, same speaker as asterisk-en",
    "librivox": "English, audio book (Sense and Sensibility, LibriVox)",
    "tuxpaint-en": "English, short descriptions",
    "ktuberling-en": "English, words",
    "klettres-en": "English, letters and syllables",
}
VALID = {
    "tuxpaint-nl": "Dutch, short descriptions",
    "tuxpaint-lt": "Lithuanian, short descriptions",
    "ktuberling-de": "German, words",
    "klettres-de": "German, letters and syllables",
}


@dataclass(frozen=True)
class Clip:
    """One source file and the speaker (or package and language) it belongs to."""

    source: Path
    speaker: str


def fetch(folder: Path) -> None:
    """Download and unpack every package that is not there yet."""
    for package in PACKAGES:
        root = folder / package
        if root.exists():
            continue
        print(f"fetching {package}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        (archive,) = folder.glob(f"{package}_*.deb")
        partial = folder / f"{package}.partial"
        subprocess.run(["dpkg-deb", "-x", str(archive), str(partial)], check=True)
        partial.rename(root)
        archive.unlink()


def clips(packages: Path) -> Iterator[Clip]:
    """Every speech file in the unpacked packages, with its speaker."""
    stamps = packages / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    for path in sorted(stamps.rglob("*_desc*.ogg")):
        language = path.name.split("_desc", 1)[1].split(".")[0].strip("_") or "en"
        yield Clip(path, f"tuxpaint-{language}")
    for language in ("cs", "nl"):
        root = packages / f"fillets-ng-data-{language}/usr/share/games/fillets-ng/sound"
        for path in sorted(root.rglob("*.ogg")):
            yield Clip(path, f"fillets-{language}")
    for path in sorted((packages / "festvox-ru").rglob("*.wav")):
        yield Clip(path, "festvox-ru")
    for package, base in (("klettres", "usr/share/klettres"), ("ktuberling", "usr/share/ktuberling/sounds")):
        root = packages / f"{package}-data" / base
        for path in sorted(p for p in root.rglob("*") if p.suffix in {".ogg", ".wav"}):
            language = path.relative_to(root).parts[0].split("@")[0]
            yield Clip(path, f"{package}-{language}")
    for language in ("en", "es", "fr", "it", "ru"):
        root = packages / f"asterisk-core-sounds-{language}-g722"
        for path in sorted(root.rglob("*.g722")):
            if path.parent.name != "silence":
                yield Clip(path, f"asterisk-{language}")
    for path in sorted((packages / "pocketsphinx-testdata").rglob("librivox/*.wav")):
        yield Clip(path, "librivox")
    # Added last: the numbers in the names of the files before stay.
    voices = packages / "hedgewars-data/usr/share/games/hedgewars/Data/Sounds/voices"
    for path in sorted(voices.rglob("*.ogg")):
        if path.parent.name != "Robot":
            yield Clip(path, f"hedgewars-{path.parent.name}")


def read(path: Path) -> tuple[np.ndarray, int]:
    """Mono float samples and sample rate of any source file."""
    if path.suffix == ".g722":
        command = ["ffmpeg", "-v", "error", "-f", "g722", "-i", str(path), "-f", "f32le", "-ac", "1", "-"]
        raw = subprocess.run(command, check=True, capture_output=True).stdout
        return np.frombuffer(raw, np.float32), 16_000
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return samples.mean(axis=1), rate


def trim(samples: np.ndarray, floor_db: float = -55.0, keep: float = 0.15) -> np.ndarray:
    """Cut silence at both ends, keeping `keep` seconds of it."""
    window = SAMPLE_RATE // 100
    frames = samples[: len(samples) // window * window].reshape(-1, window)
    loud = np.flatnonzero((frames**2).mean(axis=1) > 10 ** (floor_db / 10))
    if not len(loud):
        return samples[:0]
    margin = int(keep * SAMPLE_RATE)
    return samples[max(0, loud[0] * window - margin) : (loud[-1] + 1) * window + margin]


def convert(clip: Clip, out: Path, index: int) -> tuple[str, float]:
    """Decode, resample, trim and write one clip; returns its speaker and its seconds."""
    split = "test" if clip.speaker in TEST else "valid" if clip.speaker in VALID else "train"
    target = out / split / clip.speaker / f"{index:06d}-{clip.source.stem}.flac"
    if target.exists():
        return clip.speaker, soundfile.info(target).duration
    samples, rate = read(clip.source)
    samples = trim(soxr.resample(samples, rate, SAMPLE_RATE, quality="VHQ"))
    if len(samples) < 0.3 * SAMPLE_RATE:
        return clip.speaker, 0.0
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    soundfile.write(partial, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
    partial.rename(target)
    return clip.speaker, len(samples) / SAMPLE_RATE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the corpus to")
    parser.add_argument("--packages", type=Path, help="folder for the unpacked packages (default: OUT/packages)")
    arguments = parser.parse_args()
    packages = arguments.packages or arguments.out / "packages"
    fetch(packages)

    sources = list(clips(packages))
    speakers: dict[str, dict[str, float]] = {}
    failed = 0
    with ProcessPoolExecutor() as pool:
        jobs = [(clip, pool.submit(convert, clip, arguments.out, i)) for i, clip in enumerate(sources)]
        for done, (clip, job) in enumerate(jobs, 1):
            try:
                speaker, seconds = job.result()
            except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
                print(f"skipped {clip.source}: {error}", file=sys.stderr)
                failed += 1
                continue
            entry = speakers.setdefault(speaker, {"files": 0, "minutes": 0.0})
            if seconds:
                entry["files"] += 1
                entry["minutes"] += seconds / 60
            if done % 500 == 0:
                print(f"{done}/{len(sources)} files", flush=True)

    summary: dict[str, dict[str, dict[str, float]]] = {"train": {}, "valid": {}, "test": {}}
    for speaker, entry in sorted(speakers.items()):
        split = "test" if speaker in TEST else "valid" if speaker in VALID else "train"
        summary[split][speaker] = {"files": entry["files"], "minutes": round(entry["minutes"], 1)}
    (arguments.out / "corpus.json").write_text(json.dumps(summary, indent=1) + "\n")
    for split, entries in summary.items():
        minutes = sum(e["minutes"] for e in entries.values())
        print(f"{split}: {minutes:.0f} minutes, {len(entries)} speakers or groups")
    if failed:
        print(f"{failed} files could not be read", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
