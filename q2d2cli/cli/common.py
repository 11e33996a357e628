"""What `encode` and `decode` share: options, naming of outputs, the loop over files."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q2d2cli.errors import Q2D2Error, UsageError, report
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
    from q2d2cli.transcode import Progress, Summary

Paths = Annotated[
    list[Path],
    typer.Argument(
        help="INPUT [OUTPUT], or several inputs or folders with --out-dir; - is a pipe.", show_default=False
    ),
]
OutDir = Annotated[
    Path | None, typer.Option("--out-dir", "-o", help="Folder for the outputs; made if missing.", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite existing files.")]
Device = Annotated[str, typer.Option("--device", help="auto (CUDA when present), cpu, cuda, cuda:N or mps.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no last line.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="At most this many files of each folder, evenly spaced.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per file instead of the last line.")]

Raw = Annotated[bool, typer.Option("--raw", help="Audio is PCM without header: little endian, interleaved.")]
SampleFormat = Annotated[
    str | None, typer.Option("--sample-format", help="Of --raw: s16le (the default) or f32le.", show_default=False)
]

Job = tuple[Path, Path]


def plan(
    paths: list[Path], out_dir: Path | None, suffix: str, sources: Iterable[str], check_name: Callable[[Path], None]
) -> list[Job]:
    """Input and output of every file to convert; an input is never an output, whatever the names are.

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
            return [(paths[0], paths[1])]
        (path,) = paths
        if descriptor(path, 0) is not None:
            raise UsageError("reading standard input needs an output: name a file, or - for standard output")
        check_input(path)
        if path.suffix.lower() == suffix:
            other = "decode" if suffix == ".q2d" else "encode"
            raise UsageError(f"{path} is named like an output: use q2d2 {other}, or name the output too")
        return [(path, path.with_suffix(suffix))]
    jobs: list[Job] = []
    for path in paths:
        if os.path.isdir(path):
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in sources and p.is_file())
            if not files:
                raise UsageError(f"nothing to convert in {path}: no {', '.join(sorted(sources))} files")
            jobs += [(file, out_dir / file.relative_to(path).with_suffix(suffix)) for file in files]
        elif path == PIPE:
            raise UsageError("standard input cannot go to --out-dir: name the output instead")
        else:
            jobs.append((path, out_dir / path.with_suffix(suffix).name))
    outputs: dict[Path, Path] = {}
    for source, output in jobs:
        if output in outputs:
            raise UsageError(f"{outputs[output]} and {source} would both become {output}: convert them separately")
        outputs[output] = source
    read = {(status.st_dev, status.st_ino) for source, _ in jobs if (status := regular_file(source, 0))}
    for _, output in jobs:
        status = regular_file(output, 1)
        if status and (status.st_dev, status.st_ino) in read:
            raise UsageError(f"{output} is both input and output: choose another folder with --out-dir")
    return jobs


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
    jobs: list[Job],
    out_dir: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    convert: Callable[[Path, Path, Progress], Summary],
) -> int:
    """Convert every file and report; goes on after a failure. Returns the exit code."""
    code = 0
    for source, target in jobs:
        try:
            if out_dir:
                make_folder(target.parent)
            check_output(target, force, source)
            with progress_bar(source.name, quiet) as progress:
                summary = convert(source, target, progress)
        except Q2D2Error as error:
            if len(jobs) == 1:
                raise
            report(error)
            code = max(code, error.exit_code)
            continue
        for warning in summary.warnings:
            report(warning)
        if summary.damaged_blocks or summary.lost_blocks:
            report(f"{source} {damage(summary.damaged_blocks, summary.lost_blocks)}; decoded what is there")
        if as_json:
            print(
                json.dumps(asdict(summary)), file=sys.stderr if descriptor(target, 1) == 1 else sys.stdout, flush=True
            )
        elif not quiet:
            print(last_line(summary), file=sys.stderr)
        end_by(summary.stopped_by)
    return code


@contextlib.contextmanager
def progress_bar(name: str, quiet: bool) -> Iterator[Progress]:
    """A progress bar over seconds of audio, on a terminal only and only after half a second."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[clock]}"), TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(name, total=None, clock="")
    begin = time.monotonic()

    def update(done: float, total: float | None) -> None:
        if time.monotonic() - begin > 0.5:
            bar.start()
            clock = f"{done:.0f} s" if total is None else f"{done:.0f} of {total:.0f} s"
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


def damage(damaged: int, lost: int) -> str:
    """What a robust file has suffered, in words."""
    return f"is damaged: {damaged} blocks with a wrong checksum, {lost} blocks lost"


def last_line(summary: Summary) -> str:
    """Duration, size, rate and speed of one file."""
    return (
        f"{summary.output}: {summary.duration:.2f} s, {summary.q2d_bytes} bytes, {summary.bit_rate / 1000:.2f} kbit/s "
        f"({summary.payload_bit_rate / 1000:.2f} payload), {summary.model}, "
        f"real-time factor {summary.real_time_factor:.3f}"
    )


def check_packages(command: str, *packages: str) -> None:
    """Raise UsageError if a package that a command needs from the extra `eval` is missing."""
    if any(importlib.util.find_spec(package) is None for package in packages):
        raise UsageError(f'{command} needs more packages: pip install "q2d2[eval]"')
