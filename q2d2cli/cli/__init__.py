"""The command line: one module for each command; heavy imports happen inside the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from q2d2cli.cli import (
    analyze,
    channel,
    context,
    decode,
    demo,
    detokenize,
    encode,
    evaluate,
    export,
    info,
    listening,
    models,
    probe,
    repair,
    tag,
    tokenize,
    train,
)

app = typer.Typer(
    name="q2d2",
    help="Neural speech codec with two-dimensional quantization: 1 to 7 kbit/s, one token per frame.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from q2d2cli import __version__

        print(f"q2d2 {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""


app.command("encode", no_args_is_help=True)(encode.encode)
app.command("decode", no_args_is_help=True)(decode.decode)
app.command("info", no_args_is_help=True)(info.info)
app.command("tag", no_args_is_help=True)(tag.tag)
app.command("repair", no_args_is_help=True)(repair.repair)
app.command("channel", no_args_is_help=True)(channel.channel)
app.add_typer(models.app, name="models")
app.command("eval", no_args_is_help=True)(evaluate.evaluate)
app.add_typer(listening.app, name="listening")
app.command("analyze", no_args_is_help=True)(analyze.analyze)
app.command("probe", no_args_is_help=True)(probe.probe)
app.command("tokenize", no_args_is_help=True)(tokenize.tokenize)
app.command("detokenize", no_args_is_help=True)(detokenize.detokenize)
app.command("demo")(demo.demo)
app.command("train", no_args_is_help=True)(train.train)
app.command("context", no_args_is_help=True)(context.context)
app.command("export", no_args_is_help=True)(export.export)
