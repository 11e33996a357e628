"""`q2d2 train`: train a codec from a YAML configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from q2d2cli.cli.common import Device, Quiet
from q2d2cli.errors import UsageError


def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML file; examples/speech has the shipped models'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: log, state, best checkpoint.")],
    init: Annotated[
        str | None, typer.Option("--init", help="Start from this model's weights.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> int:
    """Train a model; stop it at any time and go on with --resume.

    q2d2 train --config examples/speech/speech-3k.yaml --out runs/speech-3k
    """
    from q2d2cli.training.config import read_config

    settings = read_config(config)
    try:
        import torchaudio  # noqa: F401
    except ImportError as error:
        raise UsageError('training needs more packages: pip install "q2d2[train]"') from error
    from q2d2cli.codec import pick_device
    from q2d2cli.training.loop import train as run

    best = run(settings, out, pick_device(device), init, resume, quiet)
    if not quiet:
        print(f"best checkpoint: {best} (use it with --model {best})", file=sys.stderr)
    return 0
