"""`q2d2 decode`: .q2d files to audio files."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q2d2cli.cli.common import (
    Conversion,
    Device,
    Force,
    Json,
    OutDir,
    Output,
    Paths,
    Quiet,
    Raw,
    Runtime,
    SampleFormat,
    check_jobs,
    convert_all,
    damage_line,
    destination,
    files_of,
    holds_q2d,
    loading,
    models_like,
    plan,
    raw_format,
)
from q2d2cli.errors import Q2D2Error, UsageError, report

if TYPE_CHECKING:
    from q2d2cli.container.header import Header
    from q2d2cli.transcode import Progress, Summary

MOST_GAIN = 128
"""Of `--gain`, dB, as in opusdec."""


def decode(
    paths: Paths,
    output: Output = None,
    out_dir: OutDir = None,
    force: Force = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Where the model is, if not found by the name in the file.",
            show_default=False,
            autocompletion=models_like,
        ),
    ] = None,
    device: Device = "auto",
    runtime: Runtime = "torch",
    raw: Raw = False,
    sample_format: SampleFormat = None,
    start: Annotated[
        str | None,
        typer.Option("--start", metavar="TIME", help="Where to begin: 1:02:03 or seconds.", show_default=False),
    ] = None,
    duration: Annotated[
        str | None,
        typer.Option("--duration", metavar="TIME", help="How much to decode; all if not given.", show_default=False),
    ] = None,
    conceal: Annotated[
        bool, typer.Option("--conceal", help="Decode what there is of a damaged file; gaps are faded out.")
    ] = False,
    gain: Annotated[
        float, typer.Option("--gain", metavar="DB", help="Louder or softer by so many dB; clipped at full scale.")
    ] = 0.0,
    rate: Annotated[
        int | None,
        typer.Option(
            "--rate", min=1, max=1_000_000, help="Sample rate of the audio, Hz.", show_default="the original's"
        ),
    ] = None,
    test: Annotated[
        bool, typer.Option("--test", "-t", help="Decode all the files named, write nothing, and say if they are sound.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Decode .q2d to audio, at the original's sample rate, channels and exact length.

    q2d2 decode in.q2d out.wav

    q2d2 decode FOLDER --out-dir OUT

    q2d2 decode in.q2d - | aplay

    q2d2 decode --raw in.q2d - | ...

    q2d2 decode --start 1:02:03 --duration 10 in.q2d out.wav

    q2d2 decode --test FOLDER
    """
    begin = 0.0 if start is None else seconds(start, "--start")
    length = None if duration is None else seconds(duration, "--duration")
    if not abs(gain) <= MOST_GAIN:
        raise UsageError(f"--gain {gain:g} is out of range: give -{MOST_GAIN} to {MOST_GAIN} dB")
    form = raw_format(raw, sample_format)
    if test and (output is not None or out_dir is not None):
        raise UsageError("--test writes nothing: leave --output and --out-dir out")
    paths, out_dir = destination(paths, output, out_dir)
    suffix, check = (".raw", check_raw_name) if raw else (".wav", check_name)
    planned = to_test(paths) if test else plan(paths, out_dir, suffix, {".q2d"}, check)
    check_jobs(planned.jobs, out_dir, force)
    with loading():
        from q2d2cli.checkpoints import find_weights
        from q2d2cli.coder import Coder
        from q2d2cli.passes import files_at_once
        from q2d2cli.runtimes import check_runtime, passes_at_once
        from q2d2cli.transcode import decode_file

        check_runtime(runtime, device)
    loaded: dict[str, Coder] = {}
    told: set[bytes] = set()
    one_by_one = threading.Lock()

    def codec_for(header: Header) -> Coder:
        with one_by_one:
            wanted = model or str(find_weights(header.model, header.fingerprint).folder)
            if wanted not in loaded:
                loaded[wanted] = Coder.from_pretrained(wanted, device, runtime)
            coder, mark = loaded[wanted], header.fingerprint
            if mark in coder.decodes and mark not in told and not quiet:
                told.add(mark)
                report(f"files of {header.model} are decoded with {coder.name}, which went on from it")
            return coder

    def convert(source: Path, target: Path, progress: Progress) -> Summary:
        kind = "f32le" if test else form
        summary = decode_file(codec_for, source, target, progress, kind, begin, length, conceal, gain=gain, rate=rate)
        if test and summary.faults:
            raise Q2D2Error(f"{source} {damage_line(summary.faults)}")
        return summary

    line = test_line if test else None
    at_once = files_at_once(passes_at_once(runtime))
    return convert_all(planned, out_dir, force, quiet, as_json, convert, at_once, line)


def to_test(paths: list[Path]) -> Conversion:
    """Every path is an input, and what is decoded goes nowhere."""
    nowhere, found = Path(os.devnull), Conversion([])
    for path in paths:
        files = files_of(path, {".q2d"}, found, "a .q2d file") if os.path.isdir(path) else [path]
        found.jobs += [(file, nowhere) for file in files]
    return found


def test_line(summary: Summary) -> str:
    """The last line of a file that is sound."""
    return f"{summary.input}: OK, {summary.duration:.2f} s, {summary.bit_rate / 1000:.2f} kbit/s, {summary.model}"


def seconds(text: str, option: str) -> float:
    """The time that `hours:minutes:seconds`, `minutes:seconds` or `seconds` says.

    Raises:
        UsageError: if it says none.
    """
    parts = text.split(":")
    try:
        values = [*map(int, parts[:-1]), float(parts[-1])]
    except ValueError:
        values = []
    if not 1 <= len(values) <= 3 or not all(0 <= value < 1e9 for value in values):
        raise UsageError(f"{option} {text!r} is no time: write seconds, minutes:seconds or hours:minutes:seconds")
    return sum(value * 60**power for power, value in enumerate(reversed(values)))


def check_name(path: Path) -> None:
    """Raise UsageError if `path` is rather a second .q2d file than an output, or of no format that can be written."""
    from q2d2cli.audio import output_format

    check_raw_name(path)
    if path.suffix:
        output_format(path)


def check_raw_name(path: Path) -> None:
    """Raise UsageError if `path` is rather a second .q2d file than an output."""
    if path.suffix.lower() == ".q2d" or holds_q2d(path):
        raise UsageError(
            f"{path} is a .q2d file, and decode writes audio: name the output so, or give several inputs --out-dir"
        )
