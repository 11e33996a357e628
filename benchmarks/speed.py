"""How fast the models here are, beside EnCodec, DAC, Mimi, SNAC (24 kHz) and Opus: table, JSON and picture of one run.

    python benchmarks/speed.py --out speed

Encoding and decoding apart, on clips of several lengths, on one thread and on two; then batches, folders, start-up and
peak memory. The codecs take turns, clip by clip, in one process. Times on one thread are the processor's, which hold
whatever else the machine does; on several they are the clock's, for a machine that does nothing else. The others'
networks have random weights: speed does not depend on them, and nothing is fetched. Opus is ffmpeg's, whose start
counts in its times. Tokens are what is made and decoded; files are only in the lines that name a command.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
import torch

from q2d2cli import Codec, checkpoints
from q2d2cli.audio import read_mono
from q2d2cli.errors import Q2D2Error
from q2d2cli.evaluation.codecs import Q2D2Subject, ToolSubject
from q2d2cli.evaluation.peers import Dac, Encodec, Mimi, Snac
from q2d2cli.evaluation.plots import COLOURS, INK, MARKERS, new_figure, to_svg
from q2d2cli.evaluation.speed import peak_memory
from q2d2cli.evaluation.subjects import CodecSubject

RATE = 24_000
CLIP = Path(__file__).resolve().parent.parent / "examples" / "librivox.wav"
REFERENCE = "encodec"
BATCH, BATCH_SECONDS = 16, 2
FILES, FILE_SECONDS = 8, 10
PARTS = ("encode", "decode")
ONNX = ["--runtime", "onnx"]
STARTS = {
    "import torch": ["-c", "import torch"],
    "q2d2 --version": ["-m", "q2d2cli", "--version"],
    "q2d2 encode, 1 s": ["-m", "q2d2cli", "encode", "one.wav", "one.q2d", "-q", "-f"],
    "q2d2 decode, 1 s": ["-m", "q2d2cli", "decode", "one.q2d", "back.wav", "-q", "-f"],
    "q2d2 encode --runtime onnx, 1 s": ["-m", "q2d2cli", "encode", "one.wav", "one.q2d", "-q", "-f", *ONNX],
    "q2d2 decode --runtime onnx, 1 s": ["-m", "q2d2cli", "decode", "one.q2d", "back.wav", "-q", "-f", *ONNX],
}
"""What is started, in order; the first is what the others are measured against."""
Table = list[dict[str, Any]]


class RandomEncodec(Encodec):
    """EnCodec 24 kHz with random weights."""

    def load(self) -> Any:
        from transformers import EncodecConfig, EncodecModel

        return EncodecModel(EncodecConfig())


class RandomDac(Dac):
    """DAC 24 kHz with random weights."""

    def load(self) -> Any:
        from transformers import DacConfig, DacModel

        return DacModel(DacConfig(downsampling_ratios=[2, 4, 5, 8], n_codebooks=32, sampling_rate=RATE))


class RandomMimi(Mimi):
    """Mimi with random weights."""

    def load(self) -> Any:
        from transformers import MimiConfig, MimiModel

        return MimiModel(MimiConfig())


class RandomSnac(Snac):
    """SNAC 24 kHz with random weights."""

    def load(self) -> Any:
        from snac import SNAC

        rates = [2, 4, 8, 8]
        return SNAC(RATE, 48, rates, None, 1024, rates[::-1], None, vq_strides=[4, 2, 1])


OTHERS: dict[str, Callable[[], CodecSubject]] = {
    "encodec": lambda: RandomEncodec("3", "cpu"),
    "dac": lambda: RandomDac("4", "cpu"),
    "mimi": lambda: RandomMimi("8", "cpu"),
    "snac": lambda: RandomSnac("", "cpu"),
    "opus": lambda: ToolSubject("opus", "6"),
}


def open_codec(name: str) -> CodecSubject:
    """One of the others, or a model that is here."""
    torch.manual_seed(0)
    return OTHERS[name]() if name in OTHERS else Q2D2Subject(name, "cpu")


def now(threads: int) -> float:
    """Seconds: of the processor for this process and those that have ended on one thread, of the clock on several."""
    if threads > 1:
        return time.perf_counter()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def turns(subjects: dict[str, CodecSubject], audio: np.ndarray, rounds: int) -> Table:
    """Real-time factors of encoding and decoding, and how many times as fast as EnCodec each codec is."""
    seconds, threads = len(audio) / RATE, torch.get_num_threads()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        # The first round, of a second, warms up.
        heard = audio if number else audio[:RATE]
        for name, subject in subjects.items():
            started = now(threads)
            encoded = subject.encode(heard, RATE)
            between = now(threads)
            subject.decode(encoded, RATE, len(heard))
            if number:
                times[name].append((between - started, now(threads) - between))
    table = []
    for name, pairs in times.items():
        reference = times.get(REFERENCE, pairs)
        ratios = [sum(theirs) / sum(own) for theirs, own in zip(reference, pairs, strict=True)]
        encode, decode = (median(pair[part] for pair in pairs) / seconds for part in (0, 1))
        row = {"codec": name, "threads": threads, "seconds": seconds, "encode": encode}
        table.append({**row, "decode": decode, "times_encodec": median(ratios) if REFERENCE in times else None})
    return table


def batches(codec: Codec, audio: np.ndarray, rounds: int) -> dict[str, Any]:
    """A loop over clips against the batch of them, which gives the same tokens: seconds of work per second of audio."""
    length, threads = BATCH_SECONDS * RATE, torch.get_num_threads()
    starts = np.linspace(0, len(audio) - length, BATCH).astype(int)
    batch = torch.from_numpy(np.stack([audio[start : start + length] for start in starts]))
    loops, together = [], []
    for _ in range(rounds):
        started = now(threads)
        for clip in batch:
            codec.encode(clip, RATE)
        between = now(threads)
        codec.encode_batch(batch)
        loops.append(between - started)
        together.append(now(threads) - between)
    loop, joined = median(loops) / (BATCH * BATCH_SECONDS), median(together) / (BATCH * BATCH_SECONDS)
    return {"codec": codec.name, "threads": threads, "loop": loop, "batch": joined}


def command(arguments: list[str], folder: Path, threads: int) -> float:
    """Seconds that a process takes."""
    environment = {**os.environ, "PYTHONPATH": str(CLIP.parent.parent), "OMP_NUM_THREADS": str(threads)}
    started = now(threads)
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True, capture_output=True)
    return now(threads) - started


def commands(names: list[str], audio: np.ndarray, threads: list[int], rounds: int) -> tuple[Table, Table]:
    """Folders by the real command, and what starts of processes take."""
    folders: Table = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        soundfile.write(root / "one.wav", audio[:RATE], RATE)
        (root / "in").mkdir()
        for number in range(FILES):
            soundfile.write(root / "in" / f"{number}.wav", np.roll(audio, number * RATE)[: FILE_SECONDS * RATE], RATE)
        heard = sum(soundfile.info(path).duration for path in (root / "in").iterdir())
        for name in names:
            for count in threads:
                encode = command(
                    ["-m", "q2d2cli", "encode", "in", "--out-dir", "out", "-m", name, "-q", "-f"], root, count
                )
                decode = command(["-m", "q2d2cli", "decode", "out", "--out-dir", "back", "-q", "-f"], root, count)
                row = {"codec": name, "threads": count, "files": FILES, "seconds": heard}
                folders.append({**row, "encode": encode / heard, "decode": decode / heard})
        taken: dict[str, list[float]] = {what: [] for what in STARTS}
        for number in range(rounds + 1):
            for what, arguments in STARTS.items():
                seconds = command(arguments, root, threads[0])
                if number:  # the first time graphs are made, and modules compiled
                    taken[what].append(seconds)
    first = taken[next(iter(STARTS))]
    starts = [
        {
            "what": what,
            "seconds": median(values),
            "times_import": median(a / b for a, b in zip(values, first, strict=True)),
        }
        for what, values in taken.items()
    ]
    return folders, starts


def memory_of(name: str, audio: np.ndarray) -> float | None:
    """Highest resident memory of a process that codes a clip, MB."""
    torch.set_num_threads(1)
    subject = open_codec(name)
    subject.decode(subject.encode(audio, RATE), RATE, len(audio))
    return peak_memory("cpu")


def processor() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def markdown(result: dict[str, Any]) -> str:
    """The tables as text."""
    lines = [
        f"{result['processor']}, PyTorch {result['torch']}, median of {result['rounds']} rounds. Times are seconds of "
        "work per second of audio: of the processor on one thread, of the clock on several.",
        "",
        "| codec | threads | clip | encode | decode | times as fast as EnCodec |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["clips"]:
        times = "" if row["times_encodec"] is None else f"{row['times_encodec']:.2f}"
        lines.append(
            f"| {row['codec']} | {row['threads']} | {row['seconds']:g} s | {row['encode']:.4f} | {row['decode']:.4f} "
            f"| {times} |"
        )
    lines += ["", f"| {BATCH} clips of {BATCH_SECONDS} s, encode | threads | loop | batch |", "|---|---|---|---|"]
    lines += [
        f"| {row['codec']} | {row['threads']} | {row['loop']:.4f} | {row['batch']:.4f} |" for row in result["batches"]
    ]
    lines += ["", "| folder, whole commands | threads | files | encode | decode |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['codec']} | {row['threads']} | {row['files']} | {row['encode']:.4f} | {row['decode']:.4f} |"
        for row in result["folders"]
    ]
    lines += ["", "| process | seconds | times `import torch` |", "|---|---|---|"]
    lines += [f"| `{row['what']}` | {row['seconds']:.2f} | {row['times_import']:.2f} |" for row in result["starts"]]
    lines += ["", f"| one thread, clip of {result['memory_seconds']:g} s | peak memory, MB |", "|---|---|"]
    lines += [f"| {row['codec']} | {row['megabytes']:.0f} |" for row in result["memory"] if row["megabytes"]]
    return "\n".join(lines)


def picture(result: dict[str, Any]) -> str:
    """Encoding and decoding of every codec as dots, a panel for each clip and number of threads, as SVG."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    panels = sorted({(row["threads"], row["seconds"]) for row in result["clips"]})
    figure, axes = new_figure(3.2, 2.8, len(panels))
    found = [np.log10(row[part]) for row in result["clips"] for part in PARTS]
    for axis, (threads, seconds) in zip(axes, panels, strict=True):
        rows = [row for row in result["clips"] if (row["threads"], row["seconds"]) == (threads, seconds)][::-1]
        for part, marker, colour in zip(PARTS, MARKERS, COLOURS, strict=False):
            axis.plot([row[part] for row in rows], range(len(rows)), marker, color=colour, label=part)
        axis.set_yticks(range(len(rows)), [row["codec"] for row in rows])
        axis.set_xscale("log")
        # The same scale everywhere, from one power of ten to another.
        axis.set_xlim(10 ** np.floor(min(found)), 10 ** np.ceil(max(found)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("seconds of work per second")
        axis.set_title(f"{seconds:g} s, {threads} thread{'s' if threads > 1 else ''}", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, labelcolor=INK)
    return to_svg(figure, standalone=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codecs", nargs="*", help=f"models, {', '.join(OTHERS)}; all if none is named")
    parser.add_argument("--clip", type=Path, default=CLIP, help="audio, repeated where it is too short")
    parser.add_argument("--seconds", default="1,10,60", help="lengths of clips, with commas between")
    parser.add_argument("--threads", default="1,2", help="numbers of threads")
    parser.add_argument("--rounds", type=int, default=3, help="of everything; the median counts")
    parser.add_argument("--out", type=Path, help="folder for speed.md, speed.json and speed.svg")
    arguments = parser.parse_args()
    own = [checkpoint.config.name for checkpoint in checkpoints.available()]
    names = arguments.codecs or [*own, *OTHERS]
    own = [name for name in names if name not in OTHERS]
    lengths = [float(value) for value in arguments.seconds.split(",")]
    threads = [int(value) for value in arguments.threads.split(",")]
    longest = round(max(*lengths, FILE_SECONDS) * RATE)
    audio = np.resize(read_mono(arguments.clip, RATE), longest)
    subjects = {}
    for name in names:
        try:
            subjects[name] = open_codec(name)
        except Q2D2Error as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    clips: Table = []
    joined: Table = []
    for count in threads:
        torch.set_num_threads(count)
        for seconds in lengths:
            clips += turns(subjects, audio[: round(seconds * RATE)], arguments.rounds)
        joined += [batches(Codec.from_pretrained(name, "cpu"), audio, arguments.rounds) for name in own]
    folders, starts = commands(own, audio, threads, arguments.rounds)
    memory = []
    for name in subjects:
        if name == "opus":  # a process of its own does the work
            continue
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            memory.append({"codec": name, "megabytes": pool.submit(memory_of, name, audio).result()})
    result = {
        "processor": processor(),
        "torch": torch.__version__,
        "rounds": arguments.rounds,
        "clips": clips,
        "batches": joined,
        "folders": folders,
        "starts": starts,
        "memory_seconds": longest / RATE,
        "memory": memory,
    }
    print(markdown(result))
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "speed.md").write_text(markdown(result) + "\n")
        (arguments.out / "speed.json").write_text(json.dumps(result, indent=1) + "\n")
        (arguments.out / "speed.svg").write_text(picture(result))


if __name__ == "__main__":
    main()
