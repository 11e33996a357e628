"""`q2d2 detokenize`: shards of ids back to audio."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from q2d2cli.cli.common import Device, Json, Quiet, count_bar, models_like, named
from q2d2cli.errors import report


def detokenize(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder that q2d2 tokenize has written.", show_default=False, parser=named, metavar="FOLDER"
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder for ID.wav; made if missing.", show_default=False, parser=named, metavar="PATH"
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Where the model is, if not where it was.",
            show_default=False,
            autocompletion=models_like,
        ),
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Decode what q2d2 tokenize has written. Clips that are there already are left alone.

    q2d2 detokenize DIR --out WAVS
    """
    from q2d2cli.corpus.detokenize import decode_corpus
    from q2d2cli.corpus.folder import TokenFolder

    with count_bar("clips", int(TokenFolder(folder).total("clips")), quiet) as progress:
        decoded, problems = decode_corpus(folder, out, model, device, progress)
    for problem in problems:
        report(problem)
    if as_json:
        print(json.dumps({"output": str(out), "clips": decoded, "problems": problems}))
    elif not quiet:
        print(f"{out}: {decoded} clips decoded", file=sys.stderr)
    return 1 if problems else 0
