"""`q2d2 probe`: how well classes can be told apart from a codec's codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from q2d2cli.checkpoints import DEFAULT_MODEL
from q2d2cli.cli.common import Device, Json, Quiet, check_packages, count_bar, models_like
from q2d2cli.errors import UsageError, report

if TYPE_CHECKING:
    from q2d2cli.evaluation.manifests import Item


def probe(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of class folders; with --manifest, of its files.", show_default=False)
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            help="CSV with columns path,label[,group]; paths are relative to FOLDER or else to the CSV.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model name, folder or Hub id.", autocompletion=models_like)
    ] = DEFAULT_MODEL,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Of the cross-validation.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the split into folds.")] = 0,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Train a linear classifier on the time-averaged codes of labelled files, and cross-validate it.

    q2d2 probe FOLDER

    q2d2 probe --manifest labels.csv
    """
    check_packages("probe", "sklearn")
    items = find_items(folder, manifest)
    from q2d2cli.codec import Codec
    from q2d2cli.evaluation.probe import check, probe_codes

    check(items, folds)
    codec = Codec.from_pretrained(model, device)
    with count_bar("encoding", len(items), quiet) as progress:
        result = probe_codes(codec, items, folds, seed, progress)
    for reason in result["skipped"]:
        report(f"skipped: {reason}")
    if as_json:
        print(json.dumps(result))
    else:
        show(result)
    return 1 if result["skipped"] else 0


def find_items(folder: Path | None, manifest: Path | None) -> list[Item]:
    """The labelled files that the arguments stand for.

    Raises:
        UsageError: if they stand for nothing.
    """
    from q2d2cli.evaluation.manifests import class_folders, read_manifest

    if manifest is not None:
        return read_manifest(manifest, folder)
    if folder is None:
        raise UsageError("name a folder of class folders, or a CSV file with --manifest")
    return class_folders(folder)


def show(result: dict[str, Any]) -> None:
    """The result as a table."""
    from rich.console import Console
    from rich.table import Table

    groups = f", {result['groups']} groups kept apart" if result["groups"] is not None else ""
    table = Table(box=None)
    table.add_column("class")
    table.add_column("files", justify="right")
    table.add_column("recognized", justify="right")
    for label, entry in result["classes"].items():
        table.add_row(label, str(entry["files"]), f"{entry['recognized']:.1%}")
    console = Console()
    skipped = f", {len(result['skipped'])} skipped" if result["skipped"] else ""
    console.print(
        f"{result['model']}: {result['files']} files{skipped}{groups}, {result['folds']} folds",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)
    accuracy = result["accuracy"]
    console.print(
        f"accuracy {accuracy['mean']:.1%} ±{accuracy['interval95']:.1%} (95% interval over folds), "
        f"chance {result['chance']:.1%} (most frequent class)",
        highlight=False,
        soft_wrap=True,
    )
