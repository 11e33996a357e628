"""`q2d2 tokenize`: a corpus to shards of ids for language models."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q2d2cli.cli.common import Bitrate, Device, Json, Model, Quiet, count_bar, named
from q2d2cli.cli.encode import choose
from q2d2cli.errors import UsageError, report

if TYPE_CHECKING:
    from q2d2cli.corpus.folder import TokenFolder
    from q2d2cli.corpus.sources import CorpusPlan

SHOWN = 20
"""Rejected clips that are printed; the manifest has all."""


def tokenize(
    corpus: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders, lists, manifests (.csv, .jsonl), tar shards, s3://... and other URLs of such, hf:NAME.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the shards.", show_default=False, parser=named, metavar="PATH"),
    ] = None,
    model: Model = None,
    bitrate: Bitrate = None,
    ids: Annotated[
        str, typer.Option("--ids", help="pair: an id for each pair of a frame; frame: one id for each frame.")
    ] = "pair",
    output_format: Annotated[str, typer.Option("--format", help="parquet, webdataset, megatron or npy.")] = "parquet",
    manifest: Annotated[
        list[str] | None,
        typer.Option("--manifest", help="CSV or JSON lines with text, speaker, language of clips.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Of a Hugging Face data set.")] = "train",
    streaming: Annotated[bool, typer.Option("--streaming", help="Read a Hugging Face data set as a stream.")] = False,
    shard_clips: Annotated[int, typer.Option("--shard-clips", min=1, help="Clips of a shard.")] = 1000,
    engine: Annotated[str, typer.Option("--engine", help="local, or ray: a Ray cluster.")] = "local",
    device: Device = "auto",
    verify: Annotated[
        str | None,
        typer.Option(
            "--verify",
            help="DIR: check all shards of it; 0.1% DIR: also encode that share of the clips again.",
            show_default=False,
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Turn a corpus into ids for language models. Killed, it goes on where it stopped.

    q2d2 tokenize CORPUS --out DIR

    q2d2 tokenize --verify DIR

    q2d2 tokenize --verify 0.1% DIR
    """
    if verify is not None:
        return check(verify, corpus or [], out, device, quiet, as_json)
    if not corpus or out is None:
        raise UsageError("tokenize needs a corpus and --out DIR (see q2d2 tokenize --help)")
    from q2d2cli.corpus.engines import Settings, run_job
    from q2d2cli.corpus.sources import CorpusSpec

    spec = CorpusSpec(tuple(corpus), tuple(manifest or ()), split, streaming, shard_clips)
    settings = Settings(spec, choose(model, bitrate), device, ids, output_format, engine)
    bar = Bar(quiet)
    try:
        folder = run_job(settings, out, bar.add, bar.begin)
    finally:
        bar.end()
    return print_totals(folder, bar, quiet, as_json)


class Bar:
    """A progress bar on a terminal, with hours of audio and hours an hour; counts in any case."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
        )
        hidden = quiet or not sys.stderr.isatty()
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden)
        self._task = self._bar.add_task("clips", total=None, speed="")
        self.begun, self.seconds = time.monotonic(), 0.0

    def begin(self, plan: CorpusPlan, folder: TokenFolder) -> None:
        """Show what there is to do, and what is done already."""
        done = sum(record.clips + len(record.rejected) for record in folder.records.values())
        self._bar.start()
        self._bar.update(self._task, total=plan.clips, completed=done)
        self.begun = time.monotonic()

    def add(self, clips: int, seconds: float) -> None:
        """Count what was done."""
        self.seconds += seconds
        speed = f"{self.seconds / 3600:.2f} h, {self.rate:.0f} h/h"
        self._bar.update(self._task, advance=clips, speed=speed)

    @property
    def rate(self) -> float:
        """Hours of audio an hour."""
        return self.seconds / max(1e-9, time.monotonic() - self.begun)

    def end(self) -> None:
        """Take it away."""
        self._bar.stop()


def print_totals(folder: TokenFolder, bar: Bar, quiet: bool, as_json: bool) -> int:
    """Say what there is now; returns the exit code."""
    rejected = [clip for number in sorted(folder.records) for clip in folder.records[number].rejected]
    for clip in rejected[:SHOWN]:
        report(f"left out: {clip['reason']}")
    if len(rejected) > SHOWN:
        report(f"left out: {len(rejected) - SHOWN} more, see {folder.path / 'manifest.jsonl'}")
    counts = {what: folder.total(what) for what in ("clips", "frames", "tokens")}
    hours = folder.total("seconds") / 3600
    if as_json:
        print(json.dumps({"output": str(folder.path), **counts, "hours": hours, "rejected": len(rejected)}))
    elif not quiet:
        speed = f", {bar.rate:.0f} hours an hour" if bar.seconds else ""
        shards = sum(bool(record.files) for record in folder.records.values())
        left = f", {len(rejected)} clips left out" if rejected else ""
        print(
            f"{folder.path}: {counts['clips']} clips, {hours:.2f} h, {counts['tokens']} ids in {shards} shards"
            f"{left}{speed}",
            file=sys.stderr,
        )
    return 1 if rejected else 0


def check(value: str, corpus: list[str], out: Path | None, device: str, quiet: bool, as_json: bool) -> int:
    """What `--verify` does; returns the exit code."""
    share = re.fullmatch(r"([0-9]*\.?[0-9]+)%", value)
    names = [
        name for name in (None if share else value, *corpus, None if out is None else str(out)) if name is not None
    ]
    if len(names) != 1:
        raise UsageError("--verify takes one folder: q2d2 tokenize --verify DIR, or q2d2 tokenize --verify 0.1% DIR")
    part = float(share[1]) / 100 if share else 0.0
    if part > 1:
        raise UsageError(f"{value} is more than there is: give a share of at most 100%")
    from q2d2cli.corpus.folder import TokenFolder
    from q2d2cli.corpus.verify import verify

    path = named(names[0])
    with count_bar("shards", max(1, len(TokenFolder(path).records)), quiet) as progress:
        found = verify(path, part, device, progress)
    for problem in found.problems:
        report(problem)
    counts = {"shards": found.shards, "clips": found.clips, "encoded_again": found.again}
    if as_json:
        print(json.dumps({"output": str(path), **counts, "problems": found.problems}))
    elif not quiet and not found.problems:
        again = f", {found.again} encoded again with the same ids" if part else ""
        print(f"{path}: {found.shards} shards with {found.clips} clips are whole{again}", file=sys.stderr)
    return 1 if found.problems else 0
