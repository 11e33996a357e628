"""`q2d2 train`: train a codec from a YAML configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from q2d2cli.cli.common import Device, Quiet, models_like
from q2d2cli.errors import UsageError


def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML file; examples/speech has the shipped models'.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the run: log, state, best checkpoint.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override: path.to.key=value; may be given again.", show_default=False),
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the whole configuration and stop.")
    ] = False,
    init: Annotated[
        str | None,
        typer.Option("--init", help="Start from this model's weights.", show_default=False, autocompletion=models_like),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option("--freeze", help="Parts that keep their weights: encoder,quantizer,decoder.", show_default=False),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    cooldown: Annotated[
        int | None,
        typer.Option(
            "--cooldown",
            metavar="STEPS",
            min=1,
            help="With --resume: let learning rates fall from where the run stands, in a folder of its own; the run "
            "itself stays and can go on.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> int:
    """Train a model; stop it at any time and go on with --resume.

    q2d2 train --config examples/speech/speech-3k.yaml --out runs/speech-3k
    """
    from q2d2cli.training.config import read_config, to_yaml

    changes = list(overrides or [])
    if freeze:
        changes.append(f"freeze=[{freeze}]")
    settings = read_config(config, changes)
    if print_config:
        print(to_yaml(settings), end="")
        return 0
    if out is None:
        raise UsageError("training needs --out: name a folder for the run")
    if cooldown is not None and not resume:
        raise UsageError("--cooldown cools down a run that is there: give --resume and its folder")
    try:
        from q2d2cli.training.loop import train_model
    except ImportError as error:
        raise UsageError('training needs more packages: pip install "q2d2[train]"') from error
    from q2d2cli.evaluation.metrics import check_metrics

    check_metrics(settings.validate_metrics)
    best = train_model(settings, out, device=device, init=init, resume=resume, cooldown=cooldown, quiet=quiet)
    if not quiet:
        print(f"best checkpoint: {best} (use it with --model {best})", file=sys.stderr)
    return 0
