"""`q2d2 analyze`: how a codec uses its codebook on a folder of audio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from q2d2cli.checkpoints import DEFAULT_MODEL
from q2d2cli.cli.common import Device, Force, Json, Limit, Quiet, check_packages, count_bar, models_like
from q2d2cli.errors import UsageError, report
from q2d2cli.files import atomic_output, check_input, make_folder

if TYPE_CHECKING:
    from q2d2cli.codec import Codec
    from q2d2cli.evaluation.analysis import Codes

NUMBERS = "analysis.json"


def analyze(
    source: Annotated[Path, typer.Argument(help="Folder of audio files, or one file.", show_default=False)],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model name, folder or Hub id.", autocompletion=models_like)
    ] = DEFAULT_MODEL,
    limit: Limit = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help=f"Folder for {NUMBERS} and the pictures; made if missing.", show_default=False
        ),
    ] = None,
    force: Force = False,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Utilization, entropies and mutual information of the codes of a folder, and pictures of the grids.

    q2d2 analyze FOLDER --limit 10 --out analysis
    """
    if out and (out / NUMBERS).exists() and not force:
        raise UsageError(f"{out} already holds an analysis: use --force to overwrite it")
    check_packages("analyze", "sklearn", *(["matplotlib"] if out else []))
    from q2d2cli.audio import audio_files

    if not source.is_dir():
        check_input(source)
    files = audio_files(source) if source.is_dir() else [source]
    if out:
        make_folder(out)
    from q2d2cli.codec import Codec
    from q2d2cli.evaluation import analysis
    from q2d2cli.evaluation.clips import spread

    chosen = spread(files, limit)
    codec = Codec.from_pretrained(model, device)
    with count_bar("encoding", len(chosen), quiet) as progress:
        corpus = analysis.collect(codec, chosen, progress)
    numbers = analysis.analyze(codec, corpus)
    if out:
        save(out, numbers, codec, corpus)
    for reason in corpus.skipped:
        report(f"skipped: {reason}")
    if as_json:
        print(json.dumps(numbers))
    else:
        show(numbers)
    return 1 if corpus.skipped else 0


def save(out: Path, numbers: dict[str, Any], codec: Codec, corpus: Codes) -> None:
    """Write the numbers, and for a grid quantizer the pictures."""
    from q2d2cli.evaluation import pictures
    from q2d2cli.quantizers.q2d2 import Q2D2

    quantizer = codec.model.quantizer
    if isinstance(quantizer, Q2D2) and corpus.points is not None:
        pictures.draw(out, numbers, [grid.points.numpy() for grid in quantizer.grids], corpus.points)
    else:
        report(f"no pictures: quantizer {numbers['quantizer']} of model {codec.name} has no two-dimensional grids")
    with atomic_output(out / NUMBERS) as file:
        file.write((json.dumps(numbers, indent=1) + "\n").encode())


def show(numbers: dict[str, Any]) -> None:
    """The numbers as tables."""
    from rich.console import Console
    from rich.table import Table

    pairs, book = numbers["pairs"], numbers["codebook"]
    is_grid = "mutual_information" in pairs[0]
    title = f"{numbers['model']}: {numbers['files']} files, {numbers['minutes']:.2f} minutes, {book['frames']} frames"
    use = Table(title=title, box=None)
    for column in ("pair" if is_grid else "index", "points", "used", "entropy, bits", "of", "share", "perplexity"):
        use.add_column(column, justify="right")
    for number, row in enumerate(pairs):
        use.add_row(str(number), *use_cells(row, row["points"]), f"{row['perplexity']:.1f}")
    use.add_row("all", *use_cells(book, book["size"]), f"{2 ** book['entropy']:.0f}")
    context = Table(title="entropy given a context (shuffled), bits", box=None)
    for column in ("pair" if is_grid else "index", "none", "previous frame", "rest of the frame"):
        context.add_column(column, justify="right")
    for number, row in enumerate(pairs):
        cells = [two(row[name], row[f"{name}_shuffled"]) for name in ("given_previous", "given_others")]
        context.add_row(str(number), f"{row['entropy']:.2f}", *cells)
    console = Console()
    console.print(use)
    console.print(
        f"{book['distinct']} distinct tokens in {book['frames']} frames ({book['utilization']:.2%} of the codebook; "
        f"even use would reach {book['utilization_if_even']:.2%}), so that the entropy of all is at most "
        f"{book['entropy_limit']:.2f} bits here.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(context)
    console.print(
        "Plain counts: too small where contexts are many and frames few, as the same contexts shuffled show. "
        "A context coder wins about the difference of the two.",
        highlight=False,
        soft_wrap=True,
    )
    if is_grid:
        information = Table(title="mutual information of the coordinates of a pair, bits", box=None)
        for column in ("pair", "before quantization", "after", "the grid by itself"):
            information.add_column(column, justify="right")
        for number, row in enumerate(pairs):
            values = (row["mutual_information"][name] for name in ("before", "after", "even_grid"))
            information.add_row(str(number), *("-" if value is None else f"{value:.3f}" for value in values))
        console.print(information)


def use_cells(row: dict[str, Any], size: int) -> list[str]:
    """Size, share used, entropy, its maximum and its share of that."""
    most, share = row["entropy_max"], row["entropy_share"]
    return [str(size), f"{row['utilization']:.1%}", f"{row['entropy']:.2f}", f"{most:.2f}", f"{share:.1%}"]


def two(value: float | None, shuffled: float | None) -> str:
    """An estimate and the same for shuffled contexts."""
    return "-" if value is None or shuffled is None else f"{value:.2f} ({shuffled:.2f})"
