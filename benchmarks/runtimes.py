"""ONNX Runtime beside PyTorch on speech: same tokens, same audio, processor time, and a command from its start.

    python benchmarks/runtimes.py FOLDER [MODEL ...]

One clip of each speaker, at most ten seconds of it. The runtimes take turns, so that the ratios hold whatever else the
machine does; times are of the processor, on one thread.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from q2d2cli import Codec, checkpoints
from q2d2cli.evaluation.clips import choose_clips

SECONDS = 10
TIMED = 4
"""Clips that are timed; all are compared."""
ROUNDS = 3
STARTS = 3


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    clips = [read(clip.path) for clip in choose_clips(Path(sys.argv[1]), 1)]
    names = sys.argv[2:] or [checkpoint.config.name for checkpoint in checkpoints.available()]
    print(f"{len(clips)} clips, {sum(len(audio) / rate for audio, rate in clips):.0f} s")
    print("| model | same tokens | largest difference | encode | decode |")
    print("|---|---|---|---|---|")
    for name in names:
        print(row(name, clips), flush=True)
    print(start_up(names[-1], clips[0]))


def read(path: Path) -> tuple[np.ndarray, int]:
    """`(samples, channels)` of a clip's beginning, and its rate."""
    with soundfile.SoundFile(path) as file:
        return file.read(SECONDS * file.samplerate, dtype="float32", always_2d=True), file.samplerate


def row(name: str, clips: list[tuple[np.ndarray, int]]) -> str:
    """What one model's two runtimes make of the clips."""
    codecs = {runtime: Codec.from_pretrained(name, "cpu", runtime) for runtime in ("torch", "onnx")}
    same, frames, difference = 0, 0, 0.0
    ratios: dict[str, list[float]] = {"encode": [], "decode": []}
    for number, (audio, rate) in enumerate(clips):
        tokens = {runtime: codec.encode(audio.T, rate) for runtime, codec in codecs.items()}
        same += int((tokens["torch"].tokens == tokens["onnx"].tokens).sum())
        frames += tokens["torch"].tokens.numel()
        decoded = {runtime: codec.decode(tokens["torch"]) for runtime, codec in codecs.items()}
        difference = max(difference, float((decoded["torch"] - decoded["onnx"]).abs().max()))
        if number < TIMED:
            for _ in range(ROUNDS):
                for what, times in ratios.items():
                    times.append(ratio(codecs, what, audio.T, rate, tokens["torch"]))
    speed = {what: f"{statistics.median(times):.2f}" for what, times in ratios.items()}
    share = f"{100 * same / frames:.3f}% of {frames}"
    return f"| {name} | {share} | {difference:.1e} | {speed['encode']} | {speed['decode']} |"


def ratio(codecs: dict[str, Codec], what: str, audio: np.ndarray, rate: int, tokens: object) -> float:
    """Times as fast as PyTorch."""
    times = {}
    for runtime, codec in codecs.items():
        started = time.process_time()
        if what == "encode":
            codec.encode(audio, rate)
        else:
            codec.decode(tokens)
        times[runtime] = time.process_time() - started
    return times["torch"] / times["onnx"]


def start_up(name: str, clip: tuple[np.ndarray, int]) -> str:
    """Processor time of whole processes, for one second of audio."""
    audio, rate = clip
    with tempfile.TemporaryDirectory() as folder:
        wav, q2d = Path(folder) / "a.wav", Path(folder) / "a.q2d"
        soundfile.write(wav, audio[:rate], rate)
        command = [sys.executable, "-m", "q2d2cli"]
        processes = {
            "import torch": [sys.executable, "-c", "import torch"],
            "encode --runtime torch": [*command, "encode", "-fq", "-m", name, str(wav), str(q2d)],
            "encode --runtime onnx": [*command, "encode", "-fq", "-m", name, str(wav), str(q2d), "--runtime", "onnx"],
            "decode --runtime torch": [*command, "decode", "-fq", str(q2d), str(wav)],
            "decode --runtime onnx": [*command, "decode", "-fq", str(q2d), str(wav), "--runtime", "onnx"],
        }
        taken: dict[str, list[float]] = {what: [] for what in processes}
        for number in range(STARTS + 1):
            for what, arguments in processes.items():
                seconds = used(lambda arguments=arguments: subprocess.run(arguments, check=True))
                if number:  # the first round fills caches
                    taken[what].append(seconds)
    return ", ".join(f"{what} {statistics.median(seconds):.2f} s" for what, seconds in taken.items())


def used(run: Callable[[], object]) -> float:
    """Processor time of the processes that a function starts and waits for."""
    before = os.times()
    run()
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


if __name__ == "__main__":
    main()
