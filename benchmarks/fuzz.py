"""Mutates files of the corpus and reads what comes of them; reports what failed.

python benchmarks/fuzz.py [--mutations 1000000] [--seed 1] [--coverage]

With --coverage the mutations are those of atheris, which looks for new paths through the code (pip install atheris).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "fuzz"
SLOW_SECONDS = 20
MOST_BYTES = 2**28
"""Memory that no input of this size may take."""


def mutate(data: bytes, others: list[bytes], rng: np.random.Generator) -> bytes:
    """A few random changes: flipped bits, bytes gone, inserted, repeated, or taken from another file."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(len(changed) + 1))
        size = int(rng.integers(1, 40))
        kind = rng.integers(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del changed[at : at + size]
        elif kind == 2:
            changed[at:at] = rng.bytes(size)
        elif kind == 3:
            changed[at:at] = changed[at : at + size]
        elif kind == 4:
            other = others[int(rng.integers(len(others)))]
            begin = int(rng.integers(len(other)))
            changed[at : at + size] = other[begin : begin + size]
        elif at < len(changed):
            changed[at] = (0, 0x7F, 0x80, 0xFF)[int(rng.integers(4))]
    return bytes(changed)


def resealed(data: bytes) -> bytes:
    """`data` with right checksums for its header and blocks, so that mutations get behind them."""
    import zlib

    from q2d2cli.container.blocks import read_head
    from q2d2cli.container.varint import VarintError, from_varint

    changed = bytearray(data)
    try:
        length, begin = from_varint(changed, 10)
    except VarintError:
        return data
    at = begin + length
    if at + 4 > len(changed):
        return data
    changed[at : at + 4] = zlib.crc32(changed[:at]).to_bytes(4, "little")
    at += 4
    while at < len(changed):
        head = read_head(changed, at)
        if head is None or at + head.size > len(changed):
            break
        end = at + head.size - 4
        changed[end : end + 4] = zlib.crc32(changed[at:end]).to_bytes(4, "little")
        at += head.size
    return bytes(changed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--coverage", action="store_true")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    if arguments.coverage:
        import atheris

        with atheris.instrument_imports(include=["q2d2cli.container"]):
            from fuzz_target import target
        # What it finds on the way goes to the first folder; the corpus stays as it is.
        found = tempfile.mkdtemp(prefix="q2d2-fuzz-")
        options = [f"-runs={arguments.mutations}", f"-seed={arguments.seed}", f"-artifact_prefix={found}/"]
        atheris.Setup([sys.argv[0], *options, found, str(CORPUS)], target)
        atheris.Fuzz()
        return 0
    from fuzz_target import target

    files = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    rng = np.random.default_rng(arguments.seed)
    failures, slowest, started = 0, 0.0, time.monotonic()
    tracemalloc.start()
    for number in range(arguments.mutations):
        data = mutate(files[int(rng.integers(len(files)))], files, rng)
        if number % 2:
            data = resealed(data)
        begin = time.monotonic()
        try:
            target(data)
        except Exception as error:
            failures += 1
            print(f"mutation {number}: {type(error).__name__}: {error}\n{data.hex()}", file=sys.stderr)
        slowest = max(slowest, time.monotonic() - begin)
    most = tracemalloc.get_traced_memory()[1]
    seconds = time.monotonic() - started
    print(
        f"{arguments.mutations} mutations of {len(files)} files in {seconds:.0f} s: {failures} failed, "
        f"the slowest took {slowest:.2f} s, the most memory was {most / 2**20:.0f} MiB"
    )
    return int(failures > 0 or slowest > SLOW_SECONDS or most > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
