"""Real-time factor and peak memory of a codec, in a fresh process of its own (paper Table 13)."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from q2d2cli.errors import Q2D2Error
from q2d2cli.evaluation.codecs import ToolSubject, open_subject
from q2d2cli.evaluation.subjects import CodecSubject

SECONDS = 30.0
"""Audio that is timed."""
REPEATS = 3


def measure_speed(spec: str, device: str, audio: np.ndarray, rate: int) -> dict[str, float | None]:
    """Time a codec on `(samples,)` float32 at `rate` Hz.

    Args:
        spec: as `open_subject` takes it.
        device: for neural codecs.
        audio: signal; timed as often as `REPEATS` after a warm-up, the fastest counts.
        rate: of the signal, Hz.

    Returns:
        `rtf_encode` and `rtf_decode`: seconds of work per second of audio. `memory_mb`: highest resident
        memory of the process that held the model, MB; on CUDA that of the device; None for external programs
        and where the system does not tell.

    Raises:
        Q2D2Error: if the codec fails.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(run, spec, device, audio, rate).result()
        except BrokenProcessPool as error:
            raise Q2D2Error(f"the process that timed {spec} was killed: is there enough memory?") from error


def run(spec: str, device: str, audio: np.ndarray, rate: int) -> dict[str, float | None]:
    """What the process does."""
    subject = open_subject(spec, device)
    assert isinstance(subject, CodecSubject)
    seconds = len(audio) / rate
    subject.decode(subject.encode(audio[: rate * 2], rate), rate, min(len(audio), rate * 2))
    finish(device)
    encode, decode = [], []
    for _ in range(REPEATS):
        started = time.perf_counter()
        encoded = subject.encode(audio, rate)
        finish(device)
        between = time.perf_counter()
        subject.decode(encoded, rate, len(audio))
        finish(device)
        encode.append(between - started)
        decode.append(time.perf_counter() - between)
    memory = None if isinstance(subject, ToolSubject) else peak_memory(device)
    return {
        "rtf_encode": round(min(encode) / seconds, 5),
        "rtf_decode": round(min(decode) / seconds, 5),
        "memory_mb": None if memory is None else round(memory, 1),
    }


def finish(device: str) -> None:
    """Wait until a GPU has done what it was given: its work goes on after the call that asked for it."""
    import torch

    from q2d2cli.runtimes.pytorch import pick_device

    target = pick_device(device)
    if target.type == "cuda":
        torch.cuda.synchronize(target)
    elif target.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: str) -> float | None:
    """Highest memory so far, MB."""
    import torch

    from q2d2cli.runtimes.pytorch import pick_device

    target = pick_device(device)
    if target.type == "cuda":
        return torch.cuda.max_memory_allocated(target) / 1e6
    # Not getrusage: its value survives exec, and so would tell of the parent.
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("VmHWM"))
