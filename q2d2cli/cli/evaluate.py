"""`q2d2 eval`: measure a codec on a folder of audio."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from q2d2cli import DEFAULT_MODEL
from q2d2cli.cli.common import Device, Json, Quiet
from q2d2cli.errors import UsageError

PACKAGES = {"pesq": "pesq", "stoi": "pystoi"}


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder of audio files, searched recursively.", show_default=False)],
    metrics: Annotated[str, typer.Option("--metrics", help="Comma-separated: pesq, stoi.")] = "pesq,stoi",
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model name, folder or Hugging Face Hub id.")
    ] = DEFAULT_MODEL,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Encode and decode every file of a folder and measure what came back.

    q2d2 eval --metrics pesq,stoi FOLDER
    """
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    for name in names:
        if name not in PACKAGES:
            raise UsageError(f"unknown metric {name!r}: choose from {', '.join(PACKAGES)}")
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UsageError(f'metric {name!r} needs more packages: pip install "q2d2[eval]"')
    from q2d2cli.audio import audio_files

    files = audio_files(folder)
    from rich.console import Console
    from rich.progress import Progress

    from q2d2cli.codec import Codec
    from q2d2cli.evaluation.evaluate import evaluate as run

    codec = Codec.from_pretrained(model, device)
    with Progress(console=Console(stderr=True, quiet=quiet), transient=True) as bar:
        task = bar.add_task("measuring", total=len(files))
        result = run(codec, files, names, lambda done: bar.update(task, completed=done))
    for reason in result["skipped"]:
        print(f"q2d2: skipped: {reason}", file=sys.stderr)
    if as_json:
        print(json.dumps(result))
    else:
        show(result, names)
    return 1 if result["skipped"] else 0


def show(result: dict[str, Any], names: list[str]) -> None:
    """The result as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{result['model']}: {result['files']} files, {result['minutes']} minutes", box=None)
    for column in ("metric", "mean", "95%", "n"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name in names:
        if name in result:
            entry = result[name]
            half = "-" if entry["interval95"] is None else f"±{entry['interval95']:.3f}"
            table.add_row(name.upper(), f"{entry['mean']:.3f}", half, str(entry["n"]))
        else:
            table.add_row(name.upper(), "-", "-", "0")
    pairs = zip(result["pair_entropy"], result["pair_entropy_max"], result["pair_utilization"], strict=True)
    for number, (entropy, most, used) in enumerate(pairs):
        table.add_row(f"pair {number}: entropy, bits", f"{entropy:.2f}", f"of {most:.2f}", "")
        table.add_row(f"pair {number}: points used", f"{100 * used:.1f}%", "", "")
    Console().print(table)
