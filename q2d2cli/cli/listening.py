"""`q2d2 listening`: build a listening test, and sum up what listeners said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from q2d2cli.checkpoints import DEFAULT_MODEL
from q2d2cli.cli.common import Codecs, Device, Json, Limit, Quiet, check_packages, count_bar, voice
from q2d2cli.errors import UsageError
from q2d2cli.evaluation.kinds import Kind

app = typer.Typer(help="Build a listening test, or sum up its results.", no_args_is_help=True)


@app.command("build", no_args_is_help=True)
def build(
    source: Annotated[
        Path, typer.Argument(help="Folder (searched recursively), list of paths (.txt) or file.", show_default=False)
    ],
    page: Annotated[Path, typer.Argument(help="Folder for the test; new or empty.", show_default=False)],
    codec: Codecs = None,
    kind: Annotated[Kind, typer.Option("--kind", help="What listeners are asked.")] = Kind.MUSHRA,
    limit: Limit = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> int:
    """Build a folder with a web page on which listeners compare codecs.

    q2d2 listening build FOLDER page --codec q2d2:speech-3k --codec opus:6 --limit 2
    """
    check_packages("listening build", "scipy")
    from q2d2cli.evaluation.clips import choose_clips
    from q2d2cli.evaluation.compare import open_all
    from q2d2cli.evaluation.listening import MOST_CLIPS, build_listening_test, make_trial
    from q2d2cli.evaluation.scoring import ScoringPlan

    clips = choose_clips(source, limit)
    if len(clips) > MOST_CLIPS:
        raise UsageError(f"{len(clips)} clips are too many for listeners: take at most {MOST_CLIPS} with --limit")
    specs = tuple(dict.fromkeys(codec or [f"q2d2:{DEFAULT_MODEL}"]))
    usable, subjects = open_all(ScoringPlan(specs, None, (), device), voice(quiet))
    trials = []
    with count_bar("decoding", len(clips), quiet) as progress:
        for done, clip in enumerate(clips, 1):
            trials.append(make_trial(clip, subjects))
            progress(done)
    index = build_listening_test(page, kind, "Listening test", trials)
    if not quiet:
        print(f"{index}: open it in a browser, or put the folder on a web server", file=sys.stderr)
    return 0 if len(usable.specs) == len(specs) else 1


@app.command("results", no_args_is_help=True)
def results(
    files: Annotated[list[Path], typer.Argument(help="What listeners saved: CSV and JSON files.", show_default=False)],
    as_json: Json = False,
) -> int:
    """Sum up the result files of listeners.

    q2d2 listening results listener-*.json
    """
    check_packages("listening results", "scipy")
    from q2d2cli.evaluation.listening_results import listening_results

    summed = listening_results(files)
    if as_json:
        print(json.dumps(summed))
    else:
        show(summed)
    return 0


def show(results: dict[str, Any]) -> None:
    """Print what `listening_results` found: a table for each kind of test, and who was left out and why."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for kind, result in results.items():
        mushra = kind == "mushra"
        against = "" if mushra else f" against {result['baseline']}"
        size = f"{result['listeners']} listeners, {result['trials']} trials"
        table = Table(title=escape(f"{result['title']}, {kind.upper()}{against}: {size}"), box=None)
        table.add_column("system")
        columns = ("median", "quartiles") if mushra else ("better", "same", "worse")
        for column in ("n", "mean", *columns):
            table.add_column(column, justify="right")
        for system, entry in result["systems"].items():
            cells = mushra_cells(entry) if mushra else cmos_cells(entry)
            table.add_row(escape(system), str(entry["n"]), *cells)
        console.print(table)
        for left_out in result.get("excluded", []):
            line = f"left out: {left_out['listener']} ({left_out['file']}) {left_out['reason']}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def mushra_cells(entry: dict[str, Any]) -> list[str]:
    """Mean with interval, median and quartiles."""
    low, high = entry["quartiles"]
    return [with_interval(entry, ".1f"), f"{entry['median']:.1f}", f"{low:.1f} to {high:.1f}"]


def cmos_cells(entry: dict[str, Any]) -> list[str]:
    """Mean with interval and the shares of preference."""
    return [
        with_interval(entry, "+.2f"),
        *(f"{100 * entry[share]:.0f}%" for share in ("preferred", "same", "baseline_preferred")),
    ]


def with_interval(entry: dict[str, Any], form: str) -> str:
    """Mean and 95% interval."""
    half = entry["interval95"]
    return f"{entry['mean']:{form}}" + ("" if half is None else f" ±{half:{form.lstrip('+')}}")
