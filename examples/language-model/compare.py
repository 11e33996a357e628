"""How well the ids of clips that nothing has learned from can be predicted, in bits a frame: a table in Markdown.

python compare.py RUN...

For each run of `train.py`: all ids as likely; each pair by how often its ids were there in the clips that the run
learned from; the context model that comes with the codec, as `q2d2 encode` uses it; and the model of the run. `unseen`
is the share of frames that, taken as one id each (`--ids frame`), were never there in what the run learned from.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from model import load
from train import bits_of, clips_of, read_tokens

from q2d2cli import Codec
from q2d2cli.container.coding.blocks import BlockCoder
from q2d2cli.container.coding.context import ContextModel
from q2d2cli.container.coding.library import find_for
from q2d2cli.corpus.vocabulary import Vocabulary

COLUMNS = (
    "ids of",
    "text",
    "minutes",
    "even",
    "each pair alone",
    "context model",
    "this model",
    "perplexity of an id",
    "bits a second",
    "unseen",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--codec", help="folder of the codec's model, if it is not one that comes along")
    given = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for run in given.runs:
        print(row_of(run, given.codec), flush=True)


def row_of(run: Path, folder: str | None) -> str:
    """The row of a run."""
    model, about = load(run), json.loads((run / "training.json").read_text())
    audio, rows = read_tokens(Path(about["tokens"]))
    rows = [row for row in rows if row["text"] or not model.config.text]
    held_out = [row for row in rows if row["id"].startswith(about["held_out"])]
    learned = [row for row in rows if not row["id"].startswith(about["held_out"])]
    each, vocabulary = audio["ids_per_frame"], Vocabulary.read(audio)
    known = [vocabulary.to_indices(np.array(row["codes"])) for row in learned]
    asked = [vocabulary.to_indices(np.array(row["codes"])) for row in held_out]
    frames = sum(map(len, asked))
    weights = audio["model"], audio["fingerprint"]
    codec = Codec.from_pretrained(folder, "cpu") if folder else Codec.for_weights(*weights, "cpu")
    context = find_for(bytes.fromhex(audio["fingerprint"]))
    bits = bits_of(model, clips_of(model, held_out))
    columns = [
        audio["model"],
        "none" if not model.config.text else "phonemes" if model.config.phonemes else "letters",
        f"{about['minutes']:g}",
        f"{sum(math.log2(size) for size in audio['pair_sizes']):.2f}",
        f"{alone(known, asked, audio['pair_sizes']) / frames:.2f}",
        "–" if context is None else f"{coded(context, codec, asked) / frames:.2f}",
        f"{bits * each:.2f}",
        f"{2**bits:.1f}",
        f"{bits * each * audio['frame_rate']:.0f}",
        f"{unseen(vocabulary, known, asked):.0%}",
    ]
    return f"| {' | '.join(columns)} |"


def alone(known: list[np.ndarray], asked: list[np.ndarray], sizes: list[int]) -> float:
    """Bits of all frames where each pair's chances are how often its ids were there; one is added to each count."""
    bits = 0.0
    for pair, size in enumerate(sizes):
        counts = 1 + np.bincount(np.concatenate([indices[:, pair] for indices in known]), minlength=size)
        bits -= np.log2(counts / counts.sum())[np.concatenate([indices[:, pair] for indices in asked])].sum()
    return bits


def coded(context: ContextModel, codec: Codec, asked: list[np.ndarray]) -> float:
    """Bits of all frames in the payloads of .q2d files."""
    bits = 0
    for indices in asked:
        size = codec.header(codec.sample_rate, 1, len(indices) * codec.config.hop).frames_per_block
        blocks = [indices[None, begin : begin + size] for begin in range(0, len(indices), size)]
        bits += 8 * sum(map(len, BlockCoder(context).encode(blocks)))
    return bits


def unseen(vocabulary: Vocabulary, known: list[np.ndarray], asked: list[np.ndarray]) -> float:
    """Share of frames that, taken as one id each, were never there in what was learned from."""
    whole: Any = Vocabulary(vocabulary.spec, "frame")
    return float(np.mean(~np.isin(whole.to_ids(np.concatenate(asked)), whole.to_ids(np.concatenate(known)))))


if __name__ == "__main__":
    main()
