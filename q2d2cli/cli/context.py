"""`q2d2 context`: make a model's context model, which lets files take fewer bits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q2d2cli.cli.common import Device, Force, Quiet, models_like, named
from q2d2cli.errors import UsageError

if TYPE_CHECKING:
    from q2d2cli.training.context import Report


def context(
    model: Annotated[str, typer.Argument(help="Model name or folder.", show_default=False, autocompletion=models_like)],
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="Folder of audio like that to be coded, or a list of paths.", parser=named, metavar="PATH"
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="File to write instead of the model's context.safetensors.",
            show_default=False,
            parser=named,
            metavar="PATH",
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="recurrent, or the simpler static or adaptive for comparison.")
    ] = "recurrent",
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="Of audio to learn from.")] = 300.0,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of training the recurrent network.")] = 3000,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            help="A context.safetensors to begin with, of an earlier version of the model, say.",
            show_default=False,
            parser=named,
            metavar="FILE",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")] = 0,
    force: Force = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> int:
    """Train the context model that entropy coding uses, on what a model's encoder makes of audio.

    Files encoded from then on are smaller; those encoded with another context model need that one.

    q2d2 context speech-1k --data data/speech/train
    """
    from q2d2cli.checkpoints import CONTEXT_NAME
    from q2d2cli.container.coding.library import KINDS

    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r}: choose from {', '.join(KINDS)}")
    from q2d2cli import checkpoints

    if init is not None and kind != "recurrent":
        raise UsageError(f"--init is for recurrent networks, not for {kind} tables: leave one of them out")
    target = checkpoints.find(model).whole().folder / CONTEXT_NAME if out is None else out
    if target.exists() and not force:
        raise UsageError(f"{target} already exists: use --force to overwrite it; files encoded with it need it")
    if not target.parent.is_dir():
        raise UsageError(f"folder {target.parent} does not exist: create it first")
    from q2d2cli.codec import Codec
    from q2d2cli.training.context import make

    codec = Codec.from_pretrained(model, device)
    make(codec, data, target, kind=kind, minutes=minutes, steps=steps, seed=seed, report=reporter(quiet), start=init)
    if not quiet:
        print(f"{target}: {target.stat().st_size} bytes", file=sys.stderr)
    return 0


def reporter(quiet: bool) -> Report:
    """Says on standard error how far it is, now and then."""
    from rich.console import Console
    from rich.status import Status

    status = Status("", console=Console(stderr=True, quiet=quiet or not sys.stderr.isatty()))
    status.start()

    def report(what: str, done: int, total: int) -> None:
        status.update(f"{what}: {done} of {total}")
        if done >= total:
            status.stop()

    return report
