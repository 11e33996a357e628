"""Trains a language model on what `q2d2 tokenize` has written, and says how well it predicts clips it has not seen.

python train.py TOKENS --out RUN [--text letters|phonemes] [--minutes 10] [--held-out test/]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
import torch.nn.functional as F
from alignment import BEGIN, align, learn_alignment, spell
from model import LanguageConfig, LanguageModel, save
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from q2d2cli.corpus.vocabulary import Vocabulary

CUT = 384
"""Frames of a clip in a step, at most."""
FORGOTTEN = 0.2
"""Share of frames before that a model with text is not shown in training, so that it listens to the text."""
UNNAMED = 0.1
"""Share of clips of which it is not told whose voice they are."""


@dataclass(frozen=True)
class Clip:
    """One to learn from.

    Attributes:
        ids: `(frames, pairs)`.
        symbols: numbers of its text's.
        place: `(frames,)`, of the symbol that each frame says.
        voice: its number.
    """

    ids: np.ndarray
    symbols: list[int]
    place: np.ndarray
    voice: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text", choices=["letters", "phonemes"], help="learn to say texts, spelled so")
    parser.add_argument("--held-out", default="test/", help="clips whose ids begin so are not learned from")
    parser.add_argument("--minutes", type=float, default=10.0, help="processor time of all cores together")
    parser.add_argument("--steps", type=int, help="instead of minutes")
    parser.add_argument("--batch", type=int, default=8, help="clips of a step")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("dim", "layers", "dropout"):
        default = getattr(LanguageConfig, name)
        parser.add_argument(f"--{name}", type=type(default), default=default)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    audio, rows = read_tokens(given.tokens)
    rows = [row for row in rows if row["text"] or not given.text]
    train = [row for row in rows if not row["id"].startswith(given.held_out)]
    held_out = [row for row in rows if row["id"].startswith(given.held_out)]
    if not train or not held_out:
        parser.error(f"{len(held_out)} of {len(rows)} clips have ids that begin with {given.held_out!r}: give another")
    symbols, voices, phonemes = BEGIN, list[str](), given.text == "phonemes"
    if given.text:
        symbols = "".join(sorted(set("".join(spell([row["text"] for row in train], phonemes)))))
        voices = sorted({voice_of(row) for row in train})
    sizes = (given.dim, given.layers, given.dropout)
    model = LanguageModel(LanguageConfig(audio, symbols, phonemes, voices, *sizes))
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(train)} clips to learn, {len(held_out)} to test, {weights / 1e6:.2f} million weights", flush=True)
    started = time.process_time()
    model.usual.copy_(torch.from_numpy(alignment_of(model.config, train)))
    clips = clips_of(model, train)
    print(f"{len(clips)} clips aligned in {time.process_time() - started:.0f} s", flush=True)
    if not clips:
        parser.error("no clip has a frame for each symbol of its text")
    model = fit(model, clips, given, favourite(train))
    print(json.dumps(measure(model, clips_of(model, held_out))))


def read_tokens(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What an output of `q2d2 tokenize` says of its ids, and its clips."""
    files = sorted((folder / "data").glob("*.parquet"))
    audio = json.loads(pyarrow.parquet.read_schema(files[0]).metadata[b"q2d2"])
    return audio, pyarrow.parquet.ParquetDataset(files).read().to_pylist()


def voice_of(row: dict[str, Any]) -> str:
    """Who speaks: as the corpus says, or else the clip's folder."""
    return row["speaker"] or row["id"].rpartition("/")[0]


def favourite(rows: list[dict[str, Any]]) -> str:
    """The voice that says most."""
    frames = Counter[str]()
    for row in rows:
        frames[voice_of(row)] += row["n_frames"]
    return frames.most_common(1)[0][0]


def parts_of(
    config: LanguageConfig, rows: list[dict[str, Any]]
) -> tuple[list[list[int]], list[np.ndarray], list[np.ndarray]]:
    """Of each clip: numbers of its text's symbols, those of them that take time, and its indices."""
    vocabulary = Vocabulary.read(config.audio)
    texts = config.read([row["text"] or "" for row in rows])
    said = [np.array(text)[config.timed(text)] for text in texts]
    return texts, said, [vocabulary.to_indices(np.array(row["codes"])) for row in rows]


def alignment_of(config: LanguageConfig, rows: list[dict[str, Any]]) -> np.ndarray:
    """See `learn_alignment`; of clips that have at least a frame for each symbol."""
    _, said, indices = parts_of(config, rows)
    able = [number for number, text in enumerate(said) if len(text) <= len(indices[number])]
    chosen = [said[number] for number in able], [indices[number] for number in able]
    return learn_alignment(*chosen, config.audio["pair_sizes"], len(config.symbols))


def clips_of(model: LanguageModel, rows: list[dict[str, Any]]) -> list[Clip]:
    """Clips with what each frame says; without those that have fewer frames than symbols."""
    config = model.config
    texts, said, indices = parts_of(config, rows)
    able = [number for number, text in enumerate(said) if len(text) <= len(indices[number])]
    paths = align(model.usual.numpy(), [said[number] for number in able], [indices[number] for number in able])
    return [
        Clip(
            indices[number] + np.array(config.audio["offsets"]),
            texts[number],
            np.array(config.timed(texts[number]))[path],
            config.voice(voice_of(rows[number])),
        )
        for number, path in zip(able, paths, strict=True)
    ]


def fit(model: LanguageModel, clips: list[Clip], given: argparse.Namespace, voice: str) -> LanguageModel:
    """Train for so many minutes or steps, and save the mean of the last weights now and then; gives their model."""
    rng, started = random.Random(given.seed), time.process_time()
    optimizer = torch.optim.AdamW(model.parameters(), given.rate, betas=(0.9, 0.95), weight_decay=0.01)
    clips = sorted(clips, key=lambda clip: len(clip.ids))  # those of a batch are about as long as each other
    # Of some 100 steps; fewer at the beginning.
    smooth = AveragedModel(model, avg_fn=lambda mean, now, steps: mean + (now - mean) * max(0.01, 1 / (2 + steps / 4)))
    step, done, minutes, mean = 0, 0.0, 0.0, 0.0
    while done < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = given.rate * min(1.0, (step + 1) / 20, 0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        first = rng.randint(0, max(0, len(clips) - given.batch))
        with half():
            nats, ids = loss_of(model, clips[first : first + given.batch], rng)
        loss = nats / ids
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth.update_parameters(model)
        step += 1
        mean = loss.item() if step == 1 else 0.98 * mean + 0.02 * loss.item()
        minutes = (time.process_time() - started) / 60
        done = step / given.steps if given.steps else minutes / given.minutes
        if step % 50 == 0 or done >= 1:
            print(f"step {step}, {minutes:.1f} min, {mean / math.log(2):.3f} bits an id", flush=True)
            save(given.out, smooth.module)
            about = {"held_out": given.held_out, "minutes": round(minutes, 1), "voice": voice}
            (given.out / "training.json").write_text(json.dumps({"tokens": str(given.tokens.resolve()), **about}))
    return smooth.module


def half() -> AbstractContextManager[None]:
    """Compute in bfloat16 where the processor has instructions for it."""
    able = any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)
    return torch.autocast("cpu", torch.bfloat16, enabled=able)


def loss_of(model: LanguageModel, clips: list[Clip], rng: random.Random | None = None) -> tuple[Tensor, int]:
    """Nats of all that is to be predicted of clips, and the number of their ids.

    In training, with a random generator, clips are cut, and some of what a model with text could know is kept from it.
    """
    config = model.config
    longest = max(len(clip.ids) for clip in clips)
    longest = longest if rng is None else min(longest, CUT)
    before = torch.full((len(clips), longest, len(config.audio["offsets"])), config.none)
    after = torch.zeros_like(before)
    symbols = torch.full((len(clips), max(len(clip.symbols) for clip in clips)), -1)
    place, since = (
        torch.zeros(len(clips), longest, dtype=torch.long),
        torch.zeros(len(clips), longest, dtype=torch.long),
    )
    over, known = torch.zeros(len(clips), longest), torch.zeros(len(clips), longest, dtype=torch.bool)
    voice = torch.tensor([clip.voice for clip in clips])
    for row, clip in enumerate(clips):
        start = 0 if rng is None else rng.randint(0, max(0, len(clip.ids) - longest))
        size = min(longest, len(clip.ids) - start)
        part = slice(start, start + size)
        shown = np.concatenate([np.full((1, before.shape[2]), config.none), clip.ids[:-1]])
        changes = np.flatnonzero(np.diff(clip.place, prepend=-1, append=-1))
        runs = np.diff(changes)
        before[row, :size] = torch.from_numpy(shown[part])
        after[row, :size] = torch.from_numpy(clip.ids[part])
        symbols[row, : len(clip.symbols)] = torch.tensor(clip.symbols)
        place[row, :size] = torch.from_numpy(clip.place[part])
        since[row, :size] = torch.from_numpy((np.arange(len(clip.ids)) - np.repeat(changes[:-1], runs))[part])
        ends = np.isin(np.arange(len(clip.ids)), changes[1:] - 1)
        over[row, :size] = torch.from_numpy(ends[part])
        known[row, :size] = True
    if rng is not None and config.text:
        before[torch.rand(before.shape[:2]) < FORGOTTEN] = config.none
        voice[torch.rand(len(clips)) < UNNAMED] = 0
    logits, ending = model(before, after, symbols, place, since, voice)
    nats = F.binary_cross_entropy_with_logits(ending.float()[known], over[known], reduction="sum")
    for pair, offset in enumerate(config.audio["offsets"]):
        nats = nats + F.cross_entropy(logits[pair].float()[known], after[:, :, pair][known] - offset, reduction="sum")
    return nats, int(known.sum()) * after.shape[2]


@torch.inference_mode()
def bits_of(model: LanguageModel, clips: list[Clip]) -> float:
    """Bits of an id of clips, with those that say when each symbol ends."""
    model.eval()
    found = [loss_of(model, [clip]) for clip in clips]
    return float(sum(nats for nats, _ in found)) / sum(ids for _, ids in found) / math.log(2)


def measure(model: LanguageModel, clips: list[Clip]) -> dict[str, float]:
    """How well unseen clips are predicted: of an id, and of a second of speech."""
    audio, bits = model.config.audio, bits_of(model, clips)
    even = sum(math.log2(size) for size in audio["pair_sizes"]) * audio["frame_rate"]
    return {
        "perplexity": round(2**bits, 2),
        "bits_per_second": round(bits * audio["ids_per_frame"] * audio["frame_rate"], 1),
        "bits_per_second_if_all_were_as_likely": round(even, 1),
    }


if __name__ == "__main__":
    main()
