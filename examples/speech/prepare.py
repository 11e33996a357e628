"""Fetch the speech corpus of the shipped models from Debian packages and lay it out for training.

    python examples/speech/prepare.py data/speech

Needs a Debian or Ubuntu machine (`apt-get`, `dpkg-deb`), `ffmpeg` (for G.722 only) and about
3 GB of disk. The result is

    data/speech/{train,valid,test}/SPEAKER/*.flac      24 kHz, mono, 16 bit
    data/speech/corpus.json                            minutes and files per speaker

The split is by whole speakers. `valid` chooses checkpoints; `test` is only ever measured.

`--generated FOLDER` adds generated speech: a folder a voice with its clips, and `meta-*.jsonl` with the text of each
(what `synthesize.py` beside this file makes). A tenth of the voices goes to `valid` and a tenth to `test`, by a hash of
their names, so that a voice is where it was however many come later; data/speech/texts.jsonl has what each clip says.
"""

from __future__ import annotations

import argparse
import hashlib
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


GENERATED = "generated-"
"""Before the names of generated voices."""


@dataclass(frozen=True)
class Clip:
    """One source file and the speaker (or package and language) it belongs to."""

    source: Path
    speaker: str

    @property
    def split(self) -> str:
        """Where it goes: train, valid or test."""
        if self.speaker.startswith(GENERATED):
            return voice_split(self.speaker.removeprefix(GENERATED))
        return "test" if self.speaker in TEST else "valid" if self.speaker in VALID else "train"


def voice_split(voice: str) -> str:
    """Where a generated voice goes, by its name alone."""
    tenth = hashlib.sha256(voice.encode()).digest()[0] % 10
    return {0: "test", 1: "valid"}.get(tenth, "train")


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


def generated_clips(folder: Path) -> tuple[list[Clip], dict[Path, str]]:
    """Every clip of generated speech, and the text of those that `meta-*.jsonl` tells of."""
    sources = sorted(path for path in folder.glob("*/*") if path.suffix in {".opus", ".flac", ".ogg", ".wav"})
    lines = [line for meta in sorted(folder.glob("meta-*.jsonl")) for line in meta.read_text("utf-8").splitlines()]
    texts = {folder / entry["file"]: entry["text"] for entry in map(json.loads, lines)}
    return [Clip(path, GENERATED + path.parent.name) for path in sources], texts


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


def convert(clip: Clip, target: Path) -> float:
    """Decode, resample, trim and write one clip; returns its seconds, 0 if it is too short to keep."""
    if target.exists():
        return soundfile.info(target).duration
    samples, rate = read(clip.source)
    samples = trim(soxr.resample(samples, rate, SAMPLE_RATE, quality="VHQ"))
    if len(samples) < 0.3 * SAMPLE_RATE:
        return 0.0
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    soundfile.write(partial, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
    partial.rename(target)
    return len(samples) / SAMPLE_RATE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the corpus to")
    parser.add_argument("--packages", type=Path, help="folder for the unpacked packages (default: OUT/packages)")
    parser.add_argument("--generated", type=Path, action="append", default=[], help="folder of generated speech to add")
    arguments = parser.parse_args()
    packages = arguments.packages or arguments.out / "packages"
    fetch(packages)

    sources = [(clip, f"{index:06d}-{clip.source.stem}") for index, clip in enumerate(clips(packages))]
    spoken: dict[Path, str] = {}
    for folder in arguments.generated:
        more, texts = generated_clips(folder)
        if not more:
            parser.error(f"no clips in folders below {folder}")
        sources += [(clip, clip.source.stem) for clip in more]
        spoken |= texts
    targets = {Path(clip.split, clip.speaker, f"{name}.flac"): clip for clip, name in sources}
    if len(targets) < len(sources):
        parser.error("two folders of generated speech have the same voice: leave one out")
    text_lines: list[str] = []
    speakers: dict[tuple[str, str], dict[str, float]] = {}
    failed = 0
    with ProcessPoolExecutor() as pool:
        jobs = [(clip, target, pool.submit(convert, clip, arguments.out / target)) for target, clip in targets.items()]
        for done, (clip, target, job) in enumerate(jobs, 1):
            try:
                seconds = job.result()
            except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
                print(f"skipped {clip.source}: {error}", file=sys.stderr)
                failed += 1
                continue
            entry = speakers.setdefault((clip.split, clip.speaker), {"files": 0, "minutes": 0.0})
            if seconds:
                entry["files"] += 1
                entry["minutes"] += seconds / 60
                if clip.source in spoken:
                    text_lines.append(json.dumps({"file": target.as_posix(), "text": spoken[clip.source]}) + "\n")
            if done % 500 == 0:
                print(f"{done}/{len(sources)} files", flush=True)

    summary: dict[str, dict[str, dict[str, float]]] = {"train": {}, "valid": {}, "test": {}}
    for (split, speaker), entry in sorted(speakers.items()):
        summary[split][speaker] = {"files": entry["files"], "minutes": round(entry["minutes"], 1)}
    (arguments.out / "corpus.json").write_text(json.dumps(summary, indent=1) + "\n")
    if text_lines:
        (arguments.out / "texts.jsonl").write_text("".join(text_lines))
    for split, entries in summary.items():
        minutes = sum(e["minutes"] for e in entries.values())
        print(f"{split}: {minutes:.0f} minutes, {len(entries)} speakers or groups")
    if failed:
        print(f"{failed} files could not be read", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
