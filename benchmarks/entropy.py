"""Bits per frame with each kind of context model, on audio of speakers that it has not seen, and what coding costs.

    python benchmarks/entropy.py --train data/speech/train --test data/speech/test

For each model that is here: packed, tables of counts, adaptive tables, and the recurrent network of the model's own
folder. Every file is cut into blocks as its .q2d would be, and the bits are those of the payload's whole bytes.
Times are processor time of coding against that of the network's encoder or decoder, for one long file. The last two
columns are of a few seconds of some speakers: the encoder's tokens, and those of a search (`--effort`).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"  # before NumPy asks: its products are to run on one thread, as PyTorch's do

import numpy as np

from q2d2cli import Codec, checkpoints
from q2d2cli.audio.finding import audio_files
from q2d2cli.audio.reading import read_mono
from q2d2cli.codec import Tokens
from q2d2cli.container.coding import library
from q2d2cli.container.coding.blocks import BlockCoder
from q2d2cli.container.coding.context import ContextModel
from q2d2cli.container.coding.tables import TableModel
from q2d2cli.container.packing import pack
from q2d2cli.errors import Q2D2Error
from q2d2cli.training.context import ADAPTIVE_STEP, count_tables, gather


def blocks_of(tokens: Tokens) -> list[np.ndarray]:
    """A file's blocks, `(1, frames, pairs)` each."""
    size = tokens.header.frames_per_block
    indices = tokens.indices.numpy()
    return [indices[:, begin : begin + size] for begin in range(0, indices.shape[1], size)]


def spent(blocks: list[np.ndarray], sizes: tuple[int, ...], model: ContextModel | None) -> int:
    """Payload bits of blocks; where packing is smaller a block is packed."""
    packed = [len(pack(block[0], sizes)) for block in blocks]
    coded = packed if model is None else map(len, BlockCoder(model).encode(blocks))
    return 8 * sum(map(min, packed, coded))


def speakers(folder: Path, minutes: float, codec: Codec) -> dict[str, list[Tokens]]:
    """Tokens of files of each speaker, up to so many minutes."""
    rng = np.random.default_rng(0)
    found: dict[str, list[Tokens]] = {}
    for path in rng.permutation(np.array(audio_files(folder), dtype=object)):
        files = found.setdefault(path.parent.name, [])
        if sum(tokens.duration for tokens in files) < 60 * minutes:
            files.append(codec.encode(read_mono(path, codec.sample_rate), codec.sample_rate))
    return found


def begun(folder: Path, count: int, seconds: float, codec: Codec) -> list[np.ndarray]:
    """The beginning of a file of each of some speakers, evenly spaced."""
    first: dict[str, Path] = {}
    for path in audio_files(folder):
        first.setdefault(path.parent.name, path)
    paths = list(first.values())
    count = min(count, len(paths))
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    return [read_mono(path, codec.sample_rate)[: round(seconds * codec.sample_rate)] for path in chosen]


def per_frame(blocks: list[np.ndarray], sizes: tuple[int, ...], model: ContextModel | None) -> float:
    """Payload bits per frame of blocks."""
    return spent(blocks, sizes, model) / max(1, sum(block.shape[1] for block in blocks))


def share(coding: Callable[[], object], network: Callable[[], object], rounds: int = 5) -> float:
    """How much of the network's processor time coding takes: they take turns, the first of which warms up."""
    found = []
    for _ in range(rounds + 1):
        started = time.process_time()
        coding()
        between = time.process_time()
        network()
        found.append((between - started) / (time.process_time() - between))
    return median(found[1:])


def cost(codec: Codec, model: ContextModel, folder: Path, length: float) -> tuple[float, float]:
    """Shares of the network's time that coding takes, encoding and decoding, for one file of so many seconds."""
    samples = np.concatenate([read_mono(path, codec.sample_rate) for path in audio_files(folder)[:200]])
    samples = samples[: round(length * codec.sample_rate)]
    tokens = codec.encode(samples, codec.sample_rate)
    coder, blocks = BlockCoder(model), blocks_of(tokens)
    coded, frames = coder.encode(blocks), [block.shape[1] for block in blocks]
    return (
        share(lambda: coder.encode(blocks), lambda: codec.encode(samples, codec.sample_rate)),
        share(lambda: coder.decode(coded, frames, 1), lambda: codec.decode(tokens)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="all that are here if none is named")
    parser.add_argument("--train", type=Path, help="audio to count for the tables; without it they are left out")
    parser.add_argument("--test", type=Path, required=True, help="audio to measure on, a folder a speaker")
    parser.add_argument("--minutes", type=float, default=60, help="of audio to count")
    parser.add_argument("--test-minutes", type=float, default=2, help="of each test speaker")
    parser.add_argument("--effort", type=int, default=5, help="rounds of search; 0 for none")
    parser.add_argument("--searched", type=int, default=6, help="speakers whose clips are searched")
    parser.add_argument("--searched-seconds", type=float, default=3, help="of each")
    parser.add_argument("--cost-seconds", type=float, default=120, help="length of the file that is timed; 0 for none")
    arguments = parser.parse_args()
    print(
        "| weights | coded | bits a frame | saved | kbit/s | of encode | of decode | some clips | "
        f"effort {arguments.effort} |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name in arguments.models or [checkpoint.config.name for checkpoint in checkpoints.available()]:
        codec = Codec.from_pretrained(name, "cpu")
        files = speakers(arguments.test, arguments.test_minutes, codec)
        clips = begun(arguments.test, arguments.searched, arguments.searched_seconds, codec) if arguments.effort else []
        searched = [
            [block for clip in clips for block in blocks_of(codec.encode(clip, codec.sample_rate, effort=effort))]
            for effort in (0, arguments.effort)
        ]
        blocks = [block for some in files.values() for tokens in some for block in blocks_of(tokens)]
        kinds: dict[str, ContextModel | None] = {"packed": None}
        if arguments.train:
            counted = gather(codec, arguments.train, arguments.minutes, 0, lambda what, done, total: None)
            kinds["static tables"] = TableModel(count_tables(counted, codec.quantizer, 0))
            kinds["adaptive tables"] = TableModel(count_tables(counted, codec.quantizer, ADAPTIVE_STEP))
        try:
            kinds["recurrent"] = library.load(checkpoints.find(name).folder / checkpoints.CONTEXT_NAME)
        except Q2D2Error as error:
            print(f"{name}: {error}")
        full = codec.quantizer.bits_per_frame
        for kind, model in kinds.items():
            bits, *few = (per_frame(some, codec.quantizer.sizes, model) for some in (blocks, *searched))
            shares = ["", ""]
            if model is not None and arguments.cost_seconds:
                shares = [f"{share:.1%}" for share in cost(codec, model, arguments.test, arguments.cost_seconds)]
            cells = [f"{bits:.2f}", f"{1 - bits / full:.1%}", f"{bits * codec.frame_rate / 1000:.2f}", *shares]
            cells += [f"{value:.2f}" if clips else "" for value in few]
            print(f"| {codec.name} | {kind} | {' | '.join(cells)} |", flush=True)
        count = sum(tokens.duration for some in files.values() for tokens in some) / 60
        print(f"| | {len(files)} speakers, {count:.1f} minutes | of {full:.2f} | | | | | | |", flush=True)


if __name__ == "__main__":
    main()
