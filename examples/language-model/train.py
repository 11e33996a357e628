"""Trains a next-token model on what `q2d2 tokenize` has written, and says how well it predicts clips it has not seen.

python train.py TOKENS --out RUN [--text] [--minutes 10] [--held-out test/]
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from contextlib import AbstractContextManager
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
    parser.add_argument("--held-out", default="test/", help="clips whose ids begin so are not learned from")
    parser.add_argument("--minutes", type=float, default=10.0, help="processor time of all cores together")
    parser.add_argument("--steps", type=int, help="instead of minutes")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    for name in ("context", "dim", "layers", "heads"):
        parser.add_argument(f"--{name}", type=int, default=getattr(LanguageConfig, name))
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    audio, rows = read_tokens(given.tokens)
    rows = [row for row in rows if row["text"] or not given.text]
    train = [row for row in rows if not row["id"].startswith(given.held_out)]
    held_out = [row for row in rows if row["id"].startswith(given.held_out)]
    if not train or not held_out:
        parser.error(f"{len(held_out)} of {len(rows)} clips have ids that begin with {given.held_out!r}: give another")
    config = LanguageConfig(audio, given.text, given.context, given.dim, given.layers, given.heads)
    model = LanguageModel(config)
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(train)} clips to learn, {len(held_out)} to test, {weights / 1e6:.2f} million weights", flush=True)
    minutes = fit(model, train, given)
    save(given.out, model)
    about = {"tokens": str(given.tokens.resolve()), "held_out": given.held_out, "minutes": round(minutes, 1)}
    (given.out / "training.json").write_text(json.dumps(about, indent=1))
    print(json.dumps(measure(model, held_out)))


def read_tokens(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What an output of `q2d2 tokenize` says of its ids, and its clips."""
    files = sorted((folder / "data").glob("*.parquet"))
    audio = json.loads(pyarrow.parquet.read_schema(files[0]).metadata[b"q2d2"])
    return audio, pyarrow.parquet.ParquetDataset(files).read().to_pylist()


def fit(model: LanguageModel, rows: list[dict[str, Any]], given: argparse.Namespace) -> float:
    """Train for so many minutes or steps; gives the minutes of processor time that it took."""
    rng, started = random.Random(given.seed), time.process_time()
    optimizer = torch.optim.AdamW(model.parameters(), given.rate, betas=(0.9, 0.95), weight_decay=0.01)
    rows = sorted(rows, key=lambda row: row["n_frames"])  # clips of a batch are about as long as each other
    step, done, minutes = 0, 0.0, 0.0
    while done < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = given.rate * min(1.0, (step + 1) / 20, 0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
        first = rng.randint(0, max(0, len(rows) - given.batch))
        batch = [example(model.config, row, rng) for row in rows[first : first + given.batch]]
        with half():
            loss = loss_of(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        minutes = (time.process_time() - started) / 60
        done = step / given.steps if given.steps else minutes / given.minutes
        if step % 50 == 0 or done >= 1:
            print(f"step {step}, {100 * done:.0f}%, {loss.item() / math.log(2):.3f} bits an id", flush=True)
    return minutes


def half() -> AbstractContextManager[None]:
    """Compute in bfloat16 where the processor has instructions for it."""
    able = any(there for name, there in torch.cpu.get_capabilities().items() if "bf16" in name)
    return torch.autocast("cpu", torch.bfloat16, enabled=able)


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
    nats = F.cross_entropy(model(inputs).float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    return nats[targets != IGNORE]


@torch.inference_mode()
def bits_of(model: LanguageModel, rows: list[dict[str, Any]]) -> float:
    """Bits of an id of the beginnings of clips, as far as the context goes."""
    found = [loss_of(model, [example(model.config, row, None)]) for row in rows]
    return float(torch.cat(found).mean()) / math.log(2)


def measure(model: LanguageModel, rows: list[dict[str, Any]]) -> dict[str, float]:
    """How well the beginnings of unseen clips are predicted: of an id, and of a second of speech."""
    audio, bits = model.config.audio, bits_of(model, rows)
    even = sum(math.log2(size) for size in audio["pair_sizes"]) * audio["frame_rate"]
    return {
        "perplexity": round(2**bits, 2),
        "bits_per_second": round(bits * audio["ids_per_frame"] * audio["frame_rate"], 1),
        "bits_per_second_if_all_were_as_likely": round(even, 1),
    }


if __name__ == "__main__":
    main()
