"""Trains a next-token model on what `q2d2 tokenize` has written, and says how well it predicts clips it has not seen.

python train.py TOKENS --out RUN [--text] [--minutes 10]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
import torch.nn.functional as F
from model import LanguageConfig, LanguageModel, save

IGNORE = -100
"""Positions that do not count: text, and what fills a batch up."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text", action="store_true", help="text in front of the audio: a toy text-to-speech")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, help="instead of minutes")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("context", "dim", "layers", "heads"):
        parser.add_argument(f"--{name}", type=int, default=getattr(LanguageConfig, name))
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    files = sorted((given.tokens / "data").glob("*.parquet"))
    audio = json.loads(pyarrow.parquet.read_schema(files[0]).metadata[b"q2d2"])
    table = pyarrow.parquet.ParquetDataset(files).read()
    rows = [row for row in table.to_pylist() if row["text"] or not given.text]
    held_out = [row for row in rows if hashlib.sha256(row["id"].encode()).digest()[0] < 13]  # one in twenty
    train = [row for row in rows if row not in held_out]
    config = LanguageConfig(audio, given.text, given.context, given.dim, given.layers, given.heads)
    model = LanguageModel(config)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(train)} clips to learn, {len(held_out)} to test, {weights / 1e6:.2f} million weights", flush=True)
    fit(model, train, given)
    save(given.out, model)
    print(json.dumps(measure(model, held_out)))


def fit(model: LanguageModel, rows: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """Train for so many minutes or steps."""
    rng, started = random.Random(given.seed), time.monotonic()
    optimizer = torch.optim.AdamW(model.parameters(), given.rate, betas=(0.9, 0.95), weight_decay=0.01)
    step, done = 0, 0.0
    while done < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = given.rate * min(1.0, (step + 1) / 50, 0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
        batch = [example(model.config, rng.choice(rows), rng) for _ in range(given.batch)]
        loss = loss_of(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        done = step / given.steps if given.steps else (time.monotonic() - started) / 60 / given.minutes
        if step % 50 == 0 or done >= 1:
            print(f"step {step}, {100 * done:.0f}%, {loss.item() / math.log(2):.3f} bits an id", flush=True)


def example(config: LanguageConfig, row: dict[str, Any], rng: random.Random | None) -> tuple[list[int], int]:
    """Ids of a clip, cut to the context, and how many of them come before what is to be predicted.

    Without text, and with a random generator, the cut may be anywhere at a frame's beginning.
    """
    prompt, codes = config.prompt(row["text"]), [*row["codes"], config.end]
    room = config.context + 1 - len(prompt)
    if rng is not None and not config.text and len(codes) > room:
        each = config.audio["ids_per_frame"]
        start = each * rng.randint(0, (len(codes) - room) // each)
        codes = codes[start:]
    return [*prompt, *codes][: config.context + 1], len(prompt)


def loss_of(model: LanguageModel, batch: list[tuple[list[int], int]]) -> torch.Tensor:
    """Nats of every id that is to be predicted, one after the other."""
    longest = max(len(ids) for ids, _ in batch)
    inputs = torch.zeros(len(batch), longest - 1, dtype=torch.long)
    targets = torch.full((len(batch), longest - 1), IGNORE)
    for number, (ids, before) in enumerate(batch):
        inputs[number, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[number, before - 1 : len(ids) - 1] = torch.tensor(ids[before:])
    nats = F.cross_entropy(model(inputs).transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    return nats[targets != IGNORE]


@torch.inference_mode()
def measure(model: LanguageModel, rows: list[dict[str, Any]]) -> dict[str, float]:
    """How well the beginnings of unseen clips are predicted: of an id, and of a second of speech."""
    nats, ids = 0.0, 0
    for row in rows:
        found = loss_of(model, [example(model.config, row, None)])
        nats, ids = nats + float(found.sum()), ids + len(found)
    audio = model.config.audio
    per_second = audio["frame_rate"] * audio["ids_per_frame"]
    bits = nats / math.log(2) / ids
    even = sum(math.log2(size) for size in audio["pair_sizes"]) * audio["frame_rate"]
    return {
        "perplexity": round(2**bits, 2),
        "bits_per_second": round(bits * per_second, 1),
        "bits_per_second_if_all_were_as_likely": round(even, 1),
    }


if __name__ == "__main__":
    main()
