"""Time and peak memory of `q2d2 encode` and `q2d2 decode` against the length of the recording.

    python benchmarks/length.py [SECONDS ...]

Without arguments a minute, an hour and ten hours, which takes as long as that is: some minutes for each hour. The
recording is made as it is fed to the encoder through a pipe, and what the decoder gives is counted and thrown away;
only the .q2d file is kept, until the end.
"""

from __future__ import annotations

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
LENGTHS = (60, 3600, 36_000)
COMMAND = [sys.executable, "-m", "q2d2cli"]


def main() -> None:
    lengths = [int(argument) for argument in sys.argv[1:]] or LENGTHS
    print(f"{DEFAULT_MODEL}, {RATE} Hz mono, {os.cpu_count()} CPU cores")
    print("| length | encode | peak memory | decode | peak memory | .q2d |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for seconds in lengths:
            path = Path(folder) / f"{seconds}.q2d"
            encoded = encode(seconds, path)
            decoded = decode(seconds, path)
            size = path.stat().st_size / 1e6
            print(f"| {clock(seconds)} | {cost(*encoded)} | {cost(*decoded)} | {size:.2f} MB |", flush=True)


def clock(seconds: int) -> str:
    """`h:mm:ss`."""
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def cost(seconds: float, megabytes: float) -> str:
    """Two cells of the table."""
    return f"{seconds:.1f} s | {megabytes:.0f} MB"


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


def encode(seconds: int, path: Path) -> tuple[float, float]:
    """Seconds taken and megabytes used at most."""
    options = ["encode", "--raw", "--rate", str(RATE), "-q", "-", str(path)]
    started = time.monotonic()
    process = subprocess.Popen([*COMMAND, *options], stdin=subprocess.PIPE)
    assert process.stdin
    with process.stdin as pipe:
        for piece in recording(seconds):
            pipe.write(piece)
    return ended(process, started)


def decode(seconds: int, path: Path) -> tuple[float, float]:
    """Seconds taken and megabytes used at most."""
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


def ended(process: subprocess.Popen[bytes], started: float) -> tuple[float, float]:
    """Wait for a command; seconds since it was started, and megabytes it used at most."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{process.args} failed")
    return time.monotonic() - started, usage.ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
