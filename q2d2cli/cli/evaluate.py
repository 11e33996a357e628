"""`q2d2 eval`: measure a codec on a folder of audio."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from q2d2cli import DEFAULT_MODEL
from q2d2cli.cli.common import Device, Json, Quiet
from q2d2cli.errors import UsageError, report

PACKAGES = {"pesq": "pesq", "stoi": "pystoi"}


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder of audio files, searched recursively.", show_default=False)],
    metrics: Annotated[str, typer.Option("--metrics", help="Comma-separated: pesq, stoi.")] = "pesq,stoi",
    model: Annotated[str, typer.Option("--model", "-m", help="Model name, folder or Hub id.")] = DEFAULT_MODEL,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most this many files of each folder, evenly spaced.")
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Encode and decode every file of a folder and measure what came back.

    q2d2 eval --metrics pesq,stoi FOLDER
    """
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    result = measure(folder, names, model, limit, device, quiet)
    if as_json:
        print(json.dumps(result))
    else:
        show(result, names)
    return 1 if result["skipped"] else 0


def measure(folder: Path, names: list[str], model: str, limit: int | None, device: str, quiet: bool) -> dict[str, Any]:
    """Run the evaluation with a progress bar, and name the files that could not be read.

    Raises:
        UsageError: on an unknown metric, a missing package, no audio.
    """
    check_metrics(names)
    from q2d2cli.audio import audio_files

    files = audio_files(folder)
    from rich.console import Console
    from rich.progress import Progress

    from q2d2cli.codec import Codec
    from q2d2cli.evaluation.evaluate import evaluate as run
    from q2d2cli.evaluation.evaluate import spread

    chosen = spread(files, limit)
    codec = Codec.from_pretrained(model, device)
    with Progress(console=Console(stderr=True, quiet=quiet), transient=True) as bar:
        task = bar.add_task("measuring", total=len(chosen))
        result = run(codec, folder, chosen, names, lambda done: bar.update(task, completed=done))
    for reason in result["skipped"]:
        report(f"skipped: {reason}")
    return result


def check_metrics(names: Sequence[str]) -> None:
    """Raise UsageError if a metric is unknown or its package is missing."""
    for name in names:
        if name not in PACKAGES:
            raise UsageError(f"unknown metric {name!r}: choose from {', '.join(PACKAGES)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UsageError(f'metric {name!r} needs more packages: pip install "q2d2[eval]"')


def show(result: dict[str, Any], names: list[str]) -> None:
    """The result as tables."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['model']}: {result['files']} files, {result['minutes']} minutes", box=None)
    table.add_column("folder")
    for name in names:
        table.add_column(name.upper(), justify="right")
        table.add_column("n", justify="right")
    rows = {**result["groups"], "all": result} if len(result["groups"]) > 1 else {"all": result}
    for folder, entry in rows.items():
        cells = [cell for name in names for cell in (with_interval(entry[name]), str(entry[name]["n"]))]
        table.add_row(folder, *cells)
    pairs = Table(box=None)
    for column in ("pair", "entropy, bits", "of", "points used"):
        pairs.add_column(column, justify="right")
    columns = (result["pair_entropy"], result["pair_entropy_max"], result["pair_utilization"])
    for number, (entropy, most, used) in enumerate(zip(*columns, strict=True)):
        pairs.add_row(str(number), f"{entropy:.2f}", f"{most:.2f}", f"{100 * used:.1f}%")
    console = Console()
    console.print(table)
    console.print(pairs)


def with_interval(entry: dict[str, Any]) -> str:
    """Mean and 95% interval."""
    if entry["mean"] is None:
        return "-"
    return f"{entry['mean']:.3f}" + (f" ±{entry['interval95']:.3f}" if entry["interval95"] is not None else "")
