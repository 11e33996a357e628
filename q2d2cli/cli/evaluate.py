"""`q2d2 eval`: measure and compare codecs on audio."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from q2d2cli.checkpoints import DEFAULT_MODEL
from q2d2cli.cli.common import Codecs, Device, Json, Limit, Quiet, Texts, voice
from q2d2cli.errors import UsageError


def evaluate(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Folder (searched recursively), list of paths (.txt) or file; and perhaps a folder of the same clips "
            "decoded elsewhere, to score these.",
            show_default=False,
        ),
    ],
    metrics: Annotated[
        str,
        typer.Option(
            "--metrics",
            help="Comma-separated: utmos, dnsmos, pesq, stoi, distillmos, wer, speaker, visqol, vuv_f1, si_sdr, level, "
            "lines, mel, rtf, memory.",
        ),
    ] = "pesq,stoi",
    codec: Codecs = None,
    limit: Limit = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for report.html, scores.csv, results.json and a plot; run again to go on.",
            show_default=False,
        ),
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(
            "--channel", help="ber=1e-4,1e-3 or loss=0.05,0.1: also score the models over it.", show_default=False
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Processes.", show_default="one per core, one on a GPU")
    ] = None,
    utmos_weights: Annotated[
        Path | None,
        typer.Option("--utmos-weights", help="utmos_state_dict.pt, if not from the Hub.", show_default=False),
    ] = None,
    recognizer: Annotated[
        str | None,
        typer.Option(
            "--recognizer", help="What hears for wer: tiny.en, base, small ... or a folder.", show_default="base"
        ),
    ] = None,
    texts: Texts = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Encode and decode audio with one codec or several, and measure what came back.

    q2d2 eval --metrics pesq,stoi FOLDER

    q2d2 eval --codec q2d2:speech-3k --codec opus:6 --codec codec2:3200 --out comparison FOLDER

    q2d2 eval ORIGINALS DECODED
    """
    from q2d2cli.evaluation.metrics import SPEED, UTMOS_VARIABLE, check_names
    from q2d2cli.evaluation.recognizer import RECOGNIZER_VARIABLE

    source, degraded = split(paths)
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    check_names(names, speed=True)
    from q2d2cli.evaluation.clips import choose_clips
    from q2d2cli.evaluation.codecs import over_channel
    from q2d2cli.evaluation.compare import compare
    from q2d2cli.evaluation.scoring import ScoringPlan

    specs = list(dict.fromkeys(codec or []))
    if not specs and degraded is None:
        specs = [f"q2d2:{DEFAULT_MODEL}"]
    if channel is not None:
        specs += over_channel(specs, channel)
    for variable, value in ((UTMOS_VARIABLE, utmos_weights), (RECOGNIZER_VARIABLE, recognizer)):
        if value is not None:
            os.environ[variable] = str(value)  # for the other processes, too
    result = compare(
        ScoringPlan(tuple(specs), degraded, tuple(name for name in names if name not in SPEED), device),
        choose_clips(source, limit, texts),
        voice(quiet),
        speed=[name for name in names if name in SPEED],
        jobs=jobs,
        out=out,
    )
    if as_json:
        print(json.dumps(result))
    else:
        show(result)
    return 1 if result["problems"] else 0


def split(paths: Sequence[Path]) -> tuple[Path, Path | None]:
    """Audio, and perhaps its decoded counterpart.

    Raises:
        UsageError: if there is more, or the second is no folder.
    """
    if len(paths) > 2:
        raise UsageError("too many paths: give a folder, list or file, and perhaps a folder of decoded files")
    degraded = paths[1] if len(paths) == 2 else None
    if degraded is not None and not degraded.is_dir():
        raise UsageError(f"{degraded} is not a folder: give the one with the decoded files")
    return paths[0], degraded


def show(result: dict[str, Any]) -> None:
    """The result as tables."""
    from rich.console import Console

    from q2d2cli.evaluation.tables import codebook_table, scope, score_table, to_rich

    console = Console()
    tables = [score_table(result, title=scope(result))]
    if datasets := [name for name in result["codecs"][0]["datasets"] if name != "all"]:
        tables.append(score_table(result, datasets, "by dataset"))
    tables += [codebook_table(codec) for codec in result["codecs"] if "pair_entropy" in codec]
    for table in tables:
        shown = to_rich(table)
        needed = Console(width=1000).measure(shown).maximum
        if not console.is_terminal:
            console = Console(width=max(console.width, needed))  # a file or a pipe has no width
        elif needed > console.width:
            shown = to_rich(table, notes=False)
        console.print(shown)
