"""Sends a recording over a socket as it comes: pieces of audio go in, blocks of a .q2d stream go out.

    python send.py HOST PORT [RECORDING] [--model MODEL] [--at-once]

The recording is fed in pieces of 20 ms in real time, as a microphone would; without one, 16-bit mono at 16 kHz is read
from standard input (`arecord -t raw -f S16_LE -r 16000 | python send.py ...`).
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from q2d2cli import Codec
from q2d2cli.container.stream import Writer

PIECE_SECONDS = 0.02
BLOCK_SECONDS = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("recording", nargs="?", type=Path)
    parser.add_argument("--model", default="speech-3k")
    parser.add_argument("--at-once", action="store_true", help="do not wait for the time a piece takes")
    arguments = parser.parse_args()

    codec = Codec.from_pretrained(arguments.model)
    rate = 16_000 if arguments.recording is None else soundfile.info(arguments.recording).samplerate
    encoder = codec.stream_encoder(rate, block_seconds=BLOCK_SECONDS)
    if latency := codec.latency(rate, BLOCK_SECONDS):
        print(f"the listener is {latency.total:.2f} s behind, at least", file=sys.stderr)
    samples = 0
    with socket.create_connection((arguments.host, arguments.port)) as connection, connection.makefile("wb") as file:
        writer = Writer(file, encoder.header)
        file.flush()
        for piece in pieces(arguments.recording, rate, arguments.at_once):
            samples += len(piece)
            for indices in encoder.push(piece):
                writer.write(indices)
                file.flush()
        for indices in encoder.finish():
            writer.write(indices)
        writer.close(samples)
    print(f"{samples / rate:.2f} s sent in {writer.bytes_written} bytes", file=sys.stderr)


def pieces(recording: Path | None, rate: int, at_once: bool) -> Iterator[np.ndarray]:
    """`(samples,)` of mono audio."""
    size = round(PIECE_SECONDS * rate)
    if recording is None:
        while data := sys.stdin.buffer.read(2 * size):
            yield np.frombuffer(data, "<i2")
        return
    started, end = time.monotonic(), 0.0
    for block in soundfile.blocks(recording, size, dtype="float32", always_2d=True):
        end += len(block) / rate
        if not at_once:
            time.sleep(max(0.0, started + end - time.monotonic()))
        yield block.mean(axis=1)


if __name__ == "__main__":
    main()
