"""Mutates files of the corpus and reads what comes of them; reports what failed.

python benchmarks/fuzz.py [--mutations 1000000] [--decode 0.001] [--seed 1] [--coverage]

Files with parity take ten times as long to read as others, and are taken a tenth as often. A share of the mutations is
decoded to audio, too, with the tests' tiny model. With --coverage the mutations are those of atheris, which looks for
new paths through the code (pip install atheris).
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
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
    parser.add_argument("--decode", type=float, default=0.001, help="share of the mutations that is decoded, too")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--coverage", action="store_true")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    if arguments.coverage:
        import atheris

        with atheris.instrument_imports(include=["q2d2cli.container"]):
            from fuzz_target import decode_target, target

        def both(data: bytes) -> None:
            target(data)
            if data[-1:] < bytes([round(256 * arguments.decode)]):
                decode_target(data)

        # What it finds on the way goes to the first folder; the corpus stays as it is.
        found = tempfile.mkdtemp(prefix="q2d2-fuzz-")
        options = [f"-runs={arguments.mutations}", f"-seed={arguments.seed}", f"-artifact_prefix={found}/"]
        atheris.Setup([sys.argv[0], *options, found, str(CORPUS)], both)
        atheris.Fuzz()
        return 0
    from fuzz_target import decode_target, target, tiny_codec

    paths = sorted(CORPUS.iterdir())
    files = [path.read_bytes() for path in paths]
    weights = np.array([0.1 if "parity" in path.name else 1.0 for path in paths])
    weights /= weights.sum()
    tiny = [number for number, path in enumerate(paths) if path.name.startswith("tiny")]
    rng = np.random.default_rng(arguments.seed)
    failures, decoded, slowest, started = 0, 0, 0.0, time.monotonic()
    if arguments.decode:
        tiny_codec()
    for path in paths:
        target(path.read_bytes())
    before = most = peak()
    chosen = np.empty(0, np.int64)
    for number in range(arguments.mutations):
        if number % 1000 == 0:
            chosen = rng.choice(len(files), 1000, p=weights)
        to_decode = rng.random() < arguments.decode
        data = mutate(files[rng.choice(tiny) if to_decode else chosen[number % 1000]], files, rng)
        if number % 2:
            data = resealed(data)
        begin = time.process_time()
        try:
            target(data)
            if to_decode:
                decoded += 1
                decode_target(data)
        except Exception as error:
            failures += 1
            print(f"mutation {number}: {type(error).__name__}: {error}\n{data.hex()}", file=sys.stderr, flush=True)
        slowest = max(slowest, time.process_time() - begin)
        if peak() - most > MOST_BYTES // 4:
            print(
                f"mutation {number}: {(peak() - most) / 2**20:.0f} MiB more\n{data.hex()}", file=sys.stderr, flush=True
            )
        most = max(most, peak())
        if number % 10_000 == 9_999:
            print(f"{number + 1} mutations in {time.monotonic() - started:.0f} s, {failures} failed", flush=True)
    print(
        f"{arguments.mutations} mutations of {len(files)} files, {decoded} of them decoded, in "
        f"{time.monotonic() - started:.0f} s ({time.process_time():.0f} s of the processor): {failures} failed, the "
        f"slowest took {slowest:.2f} s, and memory grew by {(most - before) / 2**20:.0f} MiB"
    )
    return int(failures > 0 or slowest > SLOW_SECONDS or most - before > MOST_BYTES)


def peak() -> int:
    """Most memory that this process has had, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
