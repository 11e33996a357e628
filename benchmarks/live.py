"""Measures how much a live stream lags, end to end: `q2d2 encode --live - - | q2d2 decode - -`.

    python benchmarks/live.py [MODEL [BLOCK_SECONDS [CLIP]]]

Both commands are started and have loaded the model; then the recording is fed in pieces of 20 ms in real time, and each
piece of audio that comes out is compared with the time at which its last sample went in.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import soundfile

from q2d2cli.audio import WavWriter
from q2d2cli.checkpoints import DEFAULT_MODEL, find
from q2d2cli.latency import LIVE_BLOCK_SECONDS, latency

CLIP = Path(__file__).resolve().parent.parent / "examples" / "librivox.wav"
PIECE_SECONDS = 0.02
HEADER_BYTES = 44


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("block", nargs="?", type=float, default=LIVE_BLOCK_SECONDS, help="seconds of a live block")
    parser.add_argument("clip", nargs="?", type=Path, default=CLIP, help="recording to feed")
    arguments = parser.parse_args()
    model, block = arguments.model, arguments.block
    audio, rate = soundfile.read(arguments.clip, dtype="float32")
    audio = audio if audio.ndim == 1 else audio.mean(axis=1)
    command = [sys.executable, "-m", "q2d2cli"]
    encoder = subprocess.Popen(
        [*command, "encode", "--live", "--block", str(block), "-m", model, "-q", "-", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    decoder = subprocess.Popen([*command, "decode", "-q", "-", "-"], stdin=encoder.stdout, stdout=subprocess.PIPE)
    assert encoder.stdin
    assert encoder.stdout
    assert decoder.stdout
    encoder.stdout.close()
    source = WavWriter(encoder.stdin, rate, 1, None)
    encoder.stdin.flush()
    output = decoder.stdout.fileno()
    header = b""
    while len(header) < HEADER_BYTES:
        header += os.read(output, HEADER_BYTES - len(header))

    heard: list[tuple[float, int]] = []

    def listen() -> None:
        received = 0
        while data := os.read(output, 1 << 20):
            received += len(data)
            heard.append((time.monotonic(), received // 2))

    listener = threading.Thread(target=listen)
    listener.start()
    piece = round(PIECE_SECONDS * rate)
    started = time.monotonic()
    for begin in range(0, len(audio), piece):
        # A sound card hands a piece over when its last sample was recorded.
        time.sleep(max(0.0, started + (begin + piece) / rate - time.monotonic()))
        source.write(audio[None, begin : begin + piece].astype(np.float32))
        encoder.stdin.flush()
    ended = time.monotonic()
    encoder.stdin.close()
    encoder.wait()
    listener.join()
    decoder.wait()

    assert heard[-1][1] == len(audio), "samples are missing"
    least = latency(find(model).config, rate, block)
    assert least is not None
    # A piece that ends with sample n is played from its first sample on, which waited longest.
    firsts = [0, *(count for _, count in heard)]
    lags = [when - started - first / rate for (when, _), first in zip(heard, firsts, strict=False) if when < ended]
    print(
        f"{model} at {rate} Hz, blocks of {block} s; "
        f"{len(audio) / rate:.1f} s fed in pieces of {1000 * PIECE_SECONDS:.0f} ms"
    )
    print(f"first audio {heard[0][0] - started:.3f} s after the first sample was recorded")
    print(
        f"lag of what waits longest in each piece that comes out: median {statistics.median(lags):.3f} s, "
        f"most {max(lags):.3f} s"
    )
    print(
        f"least possible {least.total:.3f} s: block {least.block:.3f}, encoder {least.encoder:.3f}, "
        f"decoder {least.decoder:.3f}, resampling {least.resampling:.3f}"
    )


if __name__ == "__main__":
    main()
