"""`q2d2 models`: what is available here, with rates, sizes and measured quality; more of them."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from q2d2cli.cli.common import Force, Json, Quiet, models_like, named
from q2d2cli.errors import Q2D2Error, UsageError, report

if TYPE_CHECKING:
    from q2d2cli.checkpoints import Checkpoint

app = typer.Typer(invoke_without_command=True)

RECORDING_RATE = 48_000
"""Sample rate, Hz, that latencies are given for."""


@app.callback()
def models(context: typer.Context, as_json: Json = False) -> int:
    """List the models that are here, or get more."""
    return 0 if context.invoked_subcommand else list_models(as_json)


@app.command("list")
def list_models(as_json: Json = False) -> int:
    """List the models that are here, as q2d2 models alone does."""
    from q2d2cli.checkpoints import DEFAULT_MODEL, available, from_hub, newest
    from q2d2cli.latency import latency

    chosen = newest(DEFAULT_MODEL)
    rows = []
    here = [(checkpoint.config.name, checkpoint) for checkpoint in available()]
    for name, checkpoint in [*here, *from_hub()]:
        config = checkpoint.config
        lag = latency(config, RECORDING_RATE)
        rows.append(
            {
                "name": name,
                "default": chosen is not None and checkpoint.folder == chosen.folder,
                "kbit_per_second": round(config.bit_rate / 1000, 3),
                "coded_kbit_per_second": None if (rate := checkpoint.coded_rate) is None else round(rate / 1000, 3),
                "tokens_per_second": round(config.frame_rate, 2),
                "sample_rate": config.sample_rate,
                "grid": config.quantizer.kind,
                "levels": list(config.quantizer.levels),
                "megabytes": round(checkpoint.weights.stat().st_size / 1e6, 1),
                "latency": None if lag is None else {**asdict(lag), "total": lag.total, "sample_rate": RECORDING_RATE},
                "fingerprint": checkpoint.fingerprint().hex(),
                "decoder_of": decoder_of(checkpoint),
                "decodes": {name: mark.hex() for name, mark in checkpoint.decodes.items()},
                "context": context_of(checkpoint),
                "metrics": checkpoint.metrics,
                "folder": str(checkpoint.folder),
            }
        )
    if as_json:
        print(json.dumps(rows))
    else:
        show(rows)
    return 0


def coded(row: dict[str, Any]) -> str:
    """How many kbit/s files take, if it was measured and the context model is here."""
    if row["context"] is None:
        return "no"
    return "yes" if row["coded_kbit_per_second"] is None else f"{row['coded_kbit_per_second']:.2f}"


def decoder_of(checkpoint: Checkpoint) -> str | None:
    """The model whose decoder a student has, by the name that it has here; None if it has its own."""
    if checkpoint.lender is None:
        return None
    try:
        return checkpoint.whole().config.name
    except Q2D2Error:
        return checkpoint.lender.model


def context_of(checkpoint: Checkpoint) -> str | None:
    """Fingerprint of a model's context model for entropy coding; None if it has none for its weights."""
    from q2d2cli.container.coding.library import open_for

    try:
        model = open_for(checkpoint)
    except Q2D2Error as error:
        report(error)
        return None
    return None if model is None else model.fingerprint.hex()


@app.command("import", no_args_is_help=True)
def import_model(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Lightning checkpoint (.ckpt) of Q2D2's or WavTokenizer's training, or its weights (.safetensors).",
            show_default=False,
            parser=named,
            metavar="CHECKPOINT",
        ),
    ],
    name: Annotated[str, typer.Argument(help="Name of the model here.", show_default=False)],
    config: Annotated[
        Path,
        typer.Option("--config", "-c", help="The YAML file that it was trained with.", parser=named, metavar="YAML"),
    ],
    force: Force = False,
    quiet: Quiet = False,
) -> int:
    """Make a model of a checkpoint that the authors' code wrote; only weights are read from it, nothing is run.

    q2d2 models import wavtokenizer.ckpt --config wavtokenizer.yaml wavtokenizer
    """
    from q2d2cli.checkpoints import CONFIG_NAME, own_folder
    from q2d2cli.models.config import NAME

    if not re.search(NAME, name):
        raise UsageError(f"{name!r} cannot be a model's name: take letters, digits, dots, hyphens and underscores")
    folder = own_folder() / name
    if (folder / CONFIG_NAME).exists() and not force:
        raise UsageError(f"{folder} already holds a model: use --force to overwrite it")
    from q2d2cli.training.lightning import import_checkpoint

    made = import_checkpoint(checkpoint, config, folder)
    if not quiet:
        rate = made.config.bit_rate / 1000
        print(
            f"{folder}: {rate:.2f} kbit/s, {made.config.frame_rate:.1f} tokens/s; use it with -m {name}",
            file=sys.stderr,
        )
    return 0


HubName = Annotated[
    str, typer.Argument(help="Hub id: owner/name, or owner/name@revision.", show_default=False, metavar="OWNER/NAME")
]


@app.command("pull", no_args_is_help=True)
def pull(name: HubName, quiet: Quiet = False) -> int:
    """Fetch a model from the Hugging Face Hub into its cache, where it stays usable without a network.

    q2d2 models pull owner/name@v1
    """
    from q2d2cli.checkpoints import fetch
    from q2d2cli.hub import is_id

    if not is_id(name):
        raise UsageError(f"{name!r} is no Hub id: write owner/name or owner/name@revision")
    checkpoint = fetch(name, quiet=quiet)
    if not quiet:
        size = checkpoint.weights.stat().st_size / 1e6
        weights = f"{size:.1f} MB, weights {checkpoint.fingerprint().hex()}"
        print(f"{name}: {weights}, revision {checkpoint.folder.name}; use it with -m {name}", file=sys.stderr)
    return 0


@app.command("push", no_args_is_help=True)
def push(
    model: Annotated[
        str,
        typer.Argument(
            help="Name of a model that is here, or its folder.", show_default=False, autocompletion=models_like
        ),
    ],
    name: HubName,
    private: Annotated[bool, typer.Option("--private", help="Make a repository that only you can see.")] = False,
    quiet: Quiet = False,
) -> int:
    """Upload a model, with its card, to the Hugging Face Hub; log in before with hf auth login.

    q2d2 models push my-model owner/name
    """
    from q2d2cli import checkpoints
    from q2d2cli.hub import is_id

    if not is_id(name) or "@" in name:
        raise UsageError(f"{name!r} is no Hub id to push to: write owner/name")
    checkpoint = checkpoints.find(model)
    checkpoints.load(checkpoint)  # nobody is to fetch a model that does not work
    commit = checkpoints.push(checkpoint, name, private=private)
    if not quiet:
        print(f"{name}@{commit}: {checkpoint.config.name}, weights {checkpoint.fingerprint().hex()}", file=sys.stderr)
    return 0


def show(rows: list[dict[str, Any]]) -> None:
    """The models as a table."""
    from rich.console import Console
    from rich.table import Table

    from q2d2cli.latency import LIVE_BLOCK_SECONDS

    console = Console()
    if not rows:
        console.print("No models here. Set Q2D2_MODELS to a folder of models, or get one with q2d2 models pull.")
        return
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for name in ("model", "kbit/s", "tokens/s", "grid", "size", "coded", "live", "DistillMOS", "STOI"):
        table.add_column(name, justify="left" if name in {"model", "grid"} else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["name"] + (" *" if row["default"] else ""),
            f"{row['kbit_per_second']:.2f}",
            f"{row['tokens_per_second']:.1f}",
            row["grid"],
            f"{row['megabytes']:.1f} MB",
            coded(row),
            f"{1000 * row['latency']['total']:.0f} ms" if row["latency"] else "-",
            *(
                f"{row['metrics'][key]:.{decimals}f}" if key in row["metrics"] else "-"
                for key, decimals in (("distillmos", 2), ("stoi", 3))
            ),
        )
    console.print(table)
    for row in rows:
        if row["decoder_of"]:
            what = f"{row['name']}: another encoder for {row['decoder_of']}, which decodes its files."
            console.print(what, style="dim")
        if row["decodes"]:
            console.print(f"{row['name']} decodes the files of {', '.join(row['decodes'])}, too.", style="dim")
    console.print(
        "*: the default. coded: kbit/s that files take on average, with the model's context model.",
        style="dim",
    )
    console.print(
        f"live: the least lag of encode --live and decode, at {RECORDING_RATE} Hz in blocks of {LIVE_BLOCK_SECONDS} s.",
        style="dim",
    )
    console.print(
        "DistillMOS, STOI: means over speakers never trained on; each model's README.md says which.", style="dim"
    )
