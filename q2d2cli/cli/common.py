"""What `encode` and `decode` share: options, naming of outputs, the loop over files."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q2d2cli import checkpoints
from q2d2cli.checkpoints import DEFAULT_MODEL
from q2d2cli.errors import Q2D2Error, UsageError, report, say
from q2d2cli.files import (
    PIPE,
    check_input,
    check_output,
    descriptor,
    is_direct,
    is_same_file,
    make_folder,
    open_binary,
    regular_file,
)
from q2d2cli.signals import end_by

if TYPE_CHECKING:
    from q2d2cli.container.stream import Fault
    from q2d2cli.evaluation.compare import Voice
    from q2d2cli.transcode import Progress, Summary


def named(text: str) -> Path:
    """A path from the command line; an empty one (a shell variable that is not set) would be the current folder."""
    if not text:
        raise typer.BadParameter("an empty name: name a file or folder, . is the current one")
    return Path(text)


Paths = Annotated[
    list[Path],
    typer.Argument(
        help="INPUT [OUTPUT], or several inputs or folders with --out-dir; - is a pipe.",
        show_default=False,
        parser=named,
        metavar="PATHS...",
    ),
]


def named_text(text: str) -> str:
    """A name from the command line as it is written, its slash at the end kept; not an empty one."""
    named(text)
    return text


Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        help="The output. A folder if one is there, if the name ends with a slash, or for several inputs or a folder.",
        show_default=False,
        parser=named_text,
        metavar="PATH",
    ),
]
OutDir = Annotated[
    Path | None,
    typer.Option(
        "--out-dir",
        help="Folder for the outputs; made if missing.",
        show_default=False,
        parser=named,
        metavar="PATH",
    ),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite existing files.")]
Device = Annotated[str, typer.Option("--device", help="auto (CUDA when present), cpu, cuda, cuda:N or mps.")]
Runtime = Annotated[
    str,
    typer.Option(
        "--runtime",
        envvar="Q2D2_RUNTIME",
        show_envvar=False,
        help="What computes the model: torch, or onnx, on a CPU and without PyTorch.",
    ),
]


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """While modules are imported, before anything else is done: they stay, and the garbage collector passes them over.

    It would go through all that PyTorch consists of again and again, and once more when the process ends: all in all
    that takes a fifth of the processor time of a command with a second of audio.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def models_like(incomplete: str) -> list[str]:
    """Names of models that begin so, for the shell to complete; with none, it completes folders."""
    return [name for name in checkpoints.names() if name.startswith(incomplete)]


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Model name, folder or Hugging Face Hub id.",
        show_default=DEFAULT_MODEL,
        autocompletion=models_like,
    ),
]
Bitrate = Annotated[
    int | None,
    typer.Option("--bitrate", "-b", help="kbit/s: picks the model instead, see q2d2 models.", show_default=False),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no last line.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="At most this many files of each folder, evenly spaced.")
]
Texts = Annotated[
    Path | None,
    typer.Option(
        "--texts",
        help="What is said, for wer: a manifest (JSON lines, CSV) or lines NAME TEXT; what it does not name is judged "
        "against what is heard in the recording.",
        show_default=False,
    ),
]
Codecs = Annotated[
    list[str] | None,
    typer.Option(
        "--codec",
        "-c",
        help="q2d2:NAME[:EFFORT[:LAMBDA]], opus:6, codec2:3200, speex:8, encodec:6, dac, mimi:8, snac, original; "
        "repeat to compare.",
        show_default=f"q2d2:{DEFAULT_MODEL}",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per file instead of the last line.")]

Raw = Annotated[bool, typer.Option("--raw", help="Audio is PCM without header: little endian, interleaved.")]
SampleFormat = Annotated[
    str | None, typer.Option("--sample-format", help="Of --raw: s16le (the default) or f32le.", show_default=False)
]

Job = tuple[Path, Path]
MOST_FAULTS = 3
"""How many faults of a file one line names."""
CLASH = "with the name of another but for the suffix: convert them separately"
THERE = "already there: --force overwrites"
SHORT = 0.1
"""Seconds below which getting ready takes longer than the audio, and a real-time factor says nothing."""
NAMES_SHOWN = 3
"""Of the files that were skipped for one reason."""


@dataclass
class Conversion:
    """What is to be done.

    Attributes:
        jobs: input and output of every file to convert.
        skipped: names of files that are not, by the reason.
    """

    jobs: list[Job]
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, path: Path, reason: str) -> None:
        """Note that a file is not converted."""
        self.skipped.setdefault(reason, []).append(path.name)


def destination(paths: list[Path], output: str | None, out_dir: Path | None) -> tuple[list[Path], Path | None]:
    """What `--output` means: `paths` with an output at their end, or else the folder for the outputs.

    Raises:
        UsageError: if the output is named twice, or several inputs would go into one file.
    """
    if output is None:
        return paths, out_dir
    if out_dir is not None:
        raise UsageError("--output and --out-dir both say where to: give one of them")
    target = Path(output)
    if os.path.isdir(target) or output.endswith("/"):
        return paths, target
    if len(paths) == 1 and not os.path.isdir(paths[0]):
        return [*paths, target], None
    from q2d2cli.audio import AUDIO_SUFFIXES

    if is_direct(target) or os.path.exists(target) or target.suffix.lower() in {".q2d", *AUDIO_SUFFIXES}:
        raise UsageError(f"several inputs do not go into {output}: name a folder, or give one input")
    return paths, target


def plan(
    paths: list[Path], out_dir: Path | None, suffix: str, sources: Iterable[str], check_name: Callable[[Path], None]
) -> Conversion:
    """Input and output of every file to convert; an input is never an output, whatever the names are.

    Of the files of folders, those that would have the same output as another are skipped, and those of other kinds.

    Args:
        paths: the command's arguments.
        out_dir: the command's `--out-dir`.
        suffix: of outputs that are not named.
        sources: suffixes of the files to take from a folder.
        check_name: raises UsageError if the second of two arguments is no output.

    Raises:
        UsageError: if it is not clear what goes where, or a folder holds nothing to convert.
    """
    if out_dir is None:
        if len(paths) > 2:
            raise UsageError("several inputs need --out-dir (with one input, a second name is the output)")
        if len(paths) == 2:
            if is_same_file(*paths):
                raise UsageError(f"{paths[1]} is both input and output: name another output")
            if paths[0] != PIPE:
                check_input(paths[0])
            check_name(paths[1])
            return Conversion([(paths[0], paths[1])])
        (path,) = paths
        if descriptor(path, 0) is not None:
            raise UsageError("reading standard input needs an output: name a file, or - for standard output")
        check_input(path)
        if path.suffix.lower() == suffix:
            other = "decode" if suffix == ".q2d" else "encode"
            raise UsageError(f"{path} is named like an output: use q2d2 {other}, or name the output too")
        return Conversion([(path, path.with_suffix(suffix))])
    found, kind = Conversion([]), "audio" if suffix == ".q2d" else "a .q2d file"
    outputs: dict[Path, Path] = {}

    def add(source: Path, output: Path) -> None:
        if outputs.setdefault(output, source) is source:
            found.jobs.append((source, output))
        else:
            found.skip(source, CLASH)

    for path in paths:
        if os.path.isdir(path):
            for file in files_of(path, sources, found, kind):
                add(file, out_dir / file.relative_to(path).with_suffix(suffix))
        elif path == PIPE:
            raise UsageError("standard input cannot go to --out-dir: name the output instead")
        else:
            add(path, out_dir / Path(path.name).with_suffix(suffix))
    jobs = found.jobs
    read = {(status.st_dev, status.st_ino) for source, _ in jobs if (status := regular_file(source, 0))}
    for _, output in jobs:
        status = regular_file(output, 1)
        if status and (status.st_dev, status.st_ino) in read:
            raise UsageError(f"{output} is both input and output: choose another folder with --out-dir")
    return found


def files_of(folder: Path, sources: Iterable[str], found: Conversion, kind: str) -> list[Path]:
    """Files of a folder with one of the suffixes `sources`; the others are noted as skipped.

    Raises:
        UsageError: if there is none; says that none is named as `kind`.
    """
    from q2d2cli.audio import is_foreign

    files = []
    for file in sorted((p for p in folder.rglob("*") if os.path.isfile(p)), key=os.fsencode):
        if is_foreign(file):
            found.skip(file, "that a Mac put beside others")
        elif file.suffix.lower() in sources:
            files.append(file)
        else:
            found.skip(file, "of another kind")
    if not files:
        raise UsageError(f"nothing to convert in {folder}: no file is named as {kind}")
    return files


def raw_format(raw: bool, sample_format: str | None) -> str | None:
    """The sample format that `--raw` and `--sample-format` ask for; None if audio has a header.

    Raises:
        UsageError: if there is no such format, or `--raw` is missing.
    """
    from q2d2cli.audio import SAMPLE_FORMATS

    if sample_format is not None and sample_format not in SAMPLE_FORMATS:
        raise UsageError(f"unknown sample format {sample_format!r}: choose from {', '.join(SAMPLE_FORMATS)}")
    if sample_format is not None and not raw:
        raise UsageError("--sample-format is for audio without header: add --raw, or leave it out")
    return (sample_format or next(iter(SAMPLE_FORMATS))) if raw else None


def holds_q2d(path: Path) -> bool:
    """Whether `path` is a regular file that begins as a .q2d file does."""
    from q2d2cli.container.header import MAGIC

    if is_direct(path) or regular_file(path, 1) is None:
        return False
    with open_binary(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def check_jobs(jobs: list[Job], out_dir: Path | None, force: bool) -> None:
    """Fail before the model is loaded if nothing can be done."""
    if len(jobs) == 1 and jobs[0][0] != PIPE:
        check_input(jobs[0][0])
    if out_dir is not None:
        make_folder(out_dir)
    elif len(jobs) == 1:
        check_output(jobs[0][1], force, jobs[0][0])


def convert_all(
    planned: Conversion,
    out_dir: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    convert: Callable[[Path, Path, Progress], Summary],
    at_once: int = 1,
    line: Callable[[Summary], str] | None = None,
) -> int:
    """Convert every file and report; goes on after a failure.

    Args:
        planned: what is to be converted.
        out_dir: the command's `--out-dir`.
        force: whether outputs may be overwritten.
        quiet: whether to leave out bars and last lines.
        as_json: whether to print summaries as JSON.
        convert: converts one file; called from several threads.
        at_once: how many files at most are converted side by side.
        line: the last line of one file; `last_line` if None.

    Returns:
        The exit code.
    """
    code = UsageError.exit_code if CLASH in planned.skipped else 0
    jobs, done, failed = [], 0, 0
    several = len(planned.jobs) > 1
    for source, target in planned.jobs:
        if several and not force and not is_direct(target) and os.path.isfile(target):
            planned.skip(target, THERE)
            code = UsageError.exit_code
        else:
            jobs.append((source, target))

    def attempt(job: Job, progress: Progress) -> Summary | Q2D2Error:
        try:
            if out_dir:
                make_folder(job[1].parent)
            check_output(job[1], force, job[0])
            return convert(*job, progress)
        except Q2D2Error as error:
            return error

    with contextlib.closing(outcomes(jobs, attempt, at_once, quiet)) as results:
        for (source, target), result in results:
            if isinstance(result, Q2D2Error):
                if not several:
                    raise result
                report(result)
                failed += 1
                code = max(code, result.exit_code)
                continue
            done += 1
            for warning in result.warnings:
                report(warning)
            if result.mended_bytes:
                report(f"{source} is damaged: {result.mended_bytes} bytes mended by its parity (see q2d2 repair)")
            if result.faults:
                gone = sum(fault.duration or 0.0 for fault in result.faults if fault.kind == "truncated")
                filled = round(result.lost_seconds - gone, 2)
                concealed = f", {filled:.2f} s concealed" if filled > 0 else ""
                report(f"{source} {damage_line(result.faults)}; decoded what is there{concealed}")
            if as_json:
                text = json.dumps(asdict(result))
                print(text, file=sys.stderr if descriptor(target, 1) == 1 else sys.stdout, flush=True)
            elif not quiet:
                say((line or last_line)(result))
            end_by(result.stopped_by)
    if not quiet and (several or planned.skipped):
        say(totals(done, failed, planned.skipped))
    return code


def outcomes(
    jobs: list[Job], attempt: Callable[[Job, Progress], Summary | Q2D2Error], at_once: int, quiet: bool
) -> Generator[tuple[Job, Summary | Q2D2Error]]:
    """What became of each job, in order; closed before the end, it stops those that are at work."""
    if at_once == 1 or len(jobs) < 2:
        for job in jobs:
            with progress_bar(job[0].name, quiet) as progress:
                result = attempt(job, progress)
            yield job, result
        return
    stop = threading.Event()

    def check(done: float, total: float | None, bit_rate: float) -> None:
        if stop.is_set():
            raise Q2D2Error("interrupted")

    with count_bar("converting", len(jobs), quiet) as bar, ThreadPoolExecutor(min(at_once, len(jobs))) as pool:
        running = [pool.submit(attempt, job, check) for job in jobs]
        try:
            for number, (job, future) in enumerate(zip(jobs, running, strict=True), 1):
                result = future.result()
                bar(number)
                yield job, result
        finally:
            stop.set()
            for future in running:
                future.cancel()


def totals(done: int, failed: int, skipped: dict[str, list[str]]) -> str:
    """How many files were converted, and which were not looked at for which reason."""
    line = f"{done} done, {failed} failed, {sum(map(len, skipped.values()))} skipped"
    reasons = []
    for reason, names in skipped.items():
        shown = ", ".join(names[:NAMES_SHOWN]) + (" ..." if len(names) > NAMES_SHOWN else "")
        reasons.append(f"{len(names)} {reason} ({shown})")
    return f"{line}: {'; '.join(reasons)}" if reasons else line


@contextlib.contextmanager
def progress_bar(name: str, quiet: bool) -> Iterator[Progress]:
    """A bar with time, speed and bit rate of one file, on a terminal only and only after half a second."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total, bit_rate: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[clock]}"), TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(name, total=None, clock="")
    begin = time.monotonic()

    def update(done: float, total: float | None, bit_rate: float) -> None:
        elapsed = time.monotonic() - begin
        if elapsed > 0.5:
            bar.start()
            clock = f"{done:.0f} s" if total is None else f"{done:.0f} of {total:.0f} s"
            clock += f", {done / elapsed:.1f}x real time"
            if bit_rate:
                clock += f", {bit_rate / 1000:.2f} kbit/s"
            bar.update(task, completed=done, total=total, clock=clock)

    try:
        yield update
    finally:
        bar.stop()


@contextlib.contextmanager
def count_bar(description: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar over a number of files, on a terminal only; yields what to call with how many are done."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True, disable=quiet or not sys.stderr.isatty()) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, completed=done)


def damage_line(faults: Sequence[Fault]) -> str:
    """What a file has suffered, in words."""
    more = f" and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
    return f"is damaged: {', '.join(map(str, faults[:MOST_FAULTS]))}{more}"


def last_line(summary: Summary) -> str:
    """Duration, size, rate and speed of one file; no speed of a clip that is over before it counts."""
    speed = f", real-time factor {summary.real_time_factor:.3f}" if summary.duration >= SHORT else ""
    tags = f" with {summary.tag_bytes} of tags" if summary.tag_bytes else ""
    return (
        f"{summary.output}: {summary.duration:.2f} s, {summary.q2d_bytes} bytes{tags}, "
        f"{summary.bit_rate / 1000:.2f} kbit/s ({summary.payload_bit_rate / 1000:.2f} payload), {summary.model}{speed}"
    )


def voice(quiet: bool) -> Voice:
    """How a comparison speaks: lines on standard error, and progress bars."""
    from q2d2cli.evaluation.compare import Voice

    return Voice(report, partial(count_bar, quiet=quiet))


def check_packages(command: str, *packages: str, extra: str = "eval") -> None:
    """Raise UsageError if a package that a command needs from an extra is missing."""
    if any(importlib.util.find_spec(package) is None for package in packages):
        raise UsageError(f'{command} needs more packages: pip install "q2d2[{extra}]"')
