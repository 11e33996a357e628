"""Lets a trained model speak: samples ids, of a text if it learned to say them, and decodes them.

python speak.py RUN out.flac [--say "Some words."] [--voice NAME]
python speak.py RUN --check 20
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from model import load
from train import read_tokens

from q2d2cli import Codec, Tokens
from q2d2cli.corpus.vocabulary import Vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path, nargs="?", help="what to write, .wav or .flac")
    parser.add_argument("--say", help="text, for a model that was trained with --text")
    parser.add_argument("--voice", help="one that it knows; that with the most speech if none is given")
    parser.add_argument(
        "--check",
        type=int,
        metavar="N",
        help="say N texts that it has not learned; how many of the words does Whisper hear?",
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="at most")
    parser.add_argument(
        "--temperature", type=float, help="of drawing ids: 0.3 with a text, 0.9 without, if none is given"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--codec", help="folder of the codec's model, if it is not one that comes along")
    given = parser.parse_args()
    model = load(given.run)
    if given.check is None and (given.out is None or model.config.text != (given.say is not None)):
        parser.error("a model that was trained with --text needs --say, and others cannot have it; all need a file")
    if given.check is not None and not model.config.text:
        parser.error("--check is for models that were trained with --text")
    about = json.loads((given.run / "training.json").read_text())
    if given.voice not in (None, *model.config.voices):
        parser.error(f"no voice {given.voice!r}: choose from {', '.join(model.config.voices)}")
    weights = model.config.audio["model"], model.config.audio["fingerprint"]
    codec = Codec.from_pretrained(given.codec, "cpu") if given.codec else Codec.for_weights(*weights, "cpu")
    frames = round(given.seconds * codec.frame_rate)
    voice = given.voice or about["voice"]
    temperature = given.temperature or (0.3 if model.config.text else 0.9)

    def spoken(text: str | None, seed: int) -> np.ndarray:
        return decoded(codec, model.config.audio, model.sample(text or "", frames, temperature, seed, voice))

    if given.check is None:
        audio = spoken(given.say, given.seed)
        soundfile.write(given.out, audio, codec.sample_rate)
        print(f"{given.out}: {len(audio) / codec.sample_rate:.2f} s")
        return
    rows = [row for row in read_tokens(Path(about["tokens"]))[1] if row["id"].startswith(about["held_out"])]
    rows = [row for row in rows if row["text"] and row["duration"] <= 9]
    rows = rows[:: max(1, len(rows) // given.check)][: given.check]
    said, copied = Heard(codec.sample_rate), Heard(codec.sample_rate)
    for number, row in enumerate(rows):
        copied.add(decoded(codec, model.config.audio, row["codes"]), row["text"])
        print(f"{row['text']}\n    {said.add(spoken(row['text'], given.seed + number), row['text'])}", flush=True)
    print(f"said: {said}\ndecoded from the recordings' tokens: {copied}")


def decoded(codec: Codec, audio: dict[str, Any], ids: list[int]) -> np.ndarray:
    """`(samples,)` of ids."""
    indices = Vocabulary.read(audio).to_indices(np.array(ids, dtype=int))
    header = codec.header(codec.sample_rate, 1, len(indices) * codec.config.hop)
    return codec.decode(Tokens(torch.from_numpy(indices)[None], header))[0].numpy()


class Heard:
    """Counts of words that Whisper base hears as they stand in the texts, and otherwise."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.counts = Counter[str]()

    def add(self, audio: np.ndarray, text: str) -> str:
        """Listen to `(samples,)` that ought to say a text; gives what was heard."""
        from jiwer import process_words

        from q2d2cli.evaluation.recognizer import recognize, words

        heard = recognize(soxr.resample(audio, self.sample_rate, 16_000), "en")[0]
        found = process_words(words(text, "en"), words(heard, "en"))
        self.counts.update(
            right=found.hits, wrong=found.substitutions, missing=found.deletions, invented=found.insertions
        )
        return heard

    def __str__(self) -> str:
        right, wrong, missing, invented = (self.counts[name] for name in ("right", "wrong", "missing", "invented"))
        there = right + wrong + missing
        rate = (wrong + missing + invented) / max(1, there)
        return (
            f"{right} of {there} words heard right, word error rate {rate:.1%} ({missing} missing, {invented} invented)"
        )


if __name__ == "__main__":
    main()
