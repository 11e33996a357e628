"""Time and peak memory of `q2d2 encode` and `q2d2 decode` against the length of the recording.

    python benchmarks/length.py [--model NAME] [SECONDS ...]

Without lengths a minute, ten minutes, an hour and ten hours, which takes some minutes for each hour. The recording is
made as it is fed to the encoder through a pipe, and what the decoder gives is counted and thrown away; only the .q2d
file is kept, until the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from q2d2cli.checkpoints import DEFAULT_MODEL

RATE = 16_000
LENGTHS = (60, 600, 3600, 36_000)
COMMAND = [sys.executable, "-m", "q2d2cli"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seconds", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    arguments = parser.parse_args()
    print(f"{arguments.model}, {RATE} Hz mono, {os.cpu_count()} CPU cores")
    print("| length | encode | processor time | peak memory | decode | processor time | peak memory | .q2d |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for seconds in arguments.seconds:
            path = Path(folder) / f"{seconds}.q2d"
            print(f"| {clock(seconds)} | {encode(seconds, path, arguments.model)} |", end=" ", flush=True)
            print(f"{decode(seconds, path)} | {path.stat().st_size / 1e6:.2f} MB |", flush=True)


def clock(seconds: int) -> str:
    """`h:mm:ss`."""
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def recording(seconds: int) -> Iterator[bytes]:
    """Something like speech, a second at a time: a tone with overtones whose pitch and loudness wander, and noise."""
    rng = np.random.default_rng(0)
    phase = 0.0
    for _ in range(seconds):
        pitch = np.interp(np.arange(RATE), np.linspace(0, RATE, 6), rng.uniform(90, 250, 6))
        loudness = np.interp(np.arange(RATE), np.linspace(0, RATE, 9), rng.uniform(0, 1, 9) ** 2)
        phases = phase + 2 * np.pi * np.cumsum(pitch) / RATE
        phase = phases[-1] % (2 * np.pi)
        voice = sum(np.sin(k * phases) / k for k in range(1, 12))
        audio = 0.1 * loudness * voice + 0.02 * loudness[::-1] * rng.normal(size=RATE)
        yield (audio.clip(-1, 1) * 32767).astype("<i2").tobytes()


def encode(seconds: int, path: Path, model: str) -> str:
    """Encode; what it took, as cells of the table."""
    options = ["encode", "--raw", "--rate", str(RATE), "-m", model, "-q", "-", str(path)]
    started = time.monotonic()
    process = subprocess.Popen([*COMMAND, *options], stdin=subprocess.PIPE)
    assert process.stdin
    with process.stdin as pipe:
        for piece in recording(seconds):
            pipe.write(piece)
    return ended(process, started)


def decode(seconds: int, path: Path) -> str:
    """Decode; what it took, as cells of the table."""
    started = time.monotonic()
    process = subprocess.Popen([*COMMAND, "decode", "--raw", "-q", str(path), "-"], stdout=subprocess.PIPE)
    assert process.stdout
    counted: list[int] = []
    thread = threading.Thread(target=lambda pipe: counted.append(count(pipe)), args=(process.stdout,))
    thread.start()
    result = ended(process, started)
    thread.join()
    if counted != [2 * RATE * seconds]:
        sys.exit(f"{counted[0]} bytes were decoded: expected {2 * RATE * seconds}")
    return result


def count(pipe: BinaryIO) -> int:
    """Bytes until the end of a pipe."""
    total = 0
    while data := pipe.read(1 << 16):
        total += len(data)
    return total


def ended(process: subprocess.Popen[bytes], started: float) -> str:
    """Wait for a command; seconds since it was started, of processor time, and megabytes it used at most, as cells."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{process.args} failed")
    wall, busy, most = time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6
    return f"{wall:.0f} s | {busy:.0f} s | {most:.0f} MB"


if __name__ == "__main__":
    main()
