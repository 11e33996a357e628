"""`q2d2 export`: a training run's best checkpoint as a model folder with a measured card; a model as ONNX files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from q2d2cli.cli.common import Device, Force, Limit, Quiet, Texts, named, voice
from q2d2cli.errors import UsageError
from q2d2cli.files import refuse_device

CARD_METRICS = "distillmos,wer,speaker,visqol,pesq,stoi,dnsmos,mel,lines"
"""What a model card has, as far as it can be computed; the first four are no model's loss."""
PEERS = ["original", "opus:6", "opus:8", "codec2:3200", "codec2:1200"]
"""What it is compared with, as far as it is installed."""


def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="Folder of the run (the --out of q2d2 train); with --onnx a model: name, folder or Hub id.",
            show_default=False,
            parser=named,
            metavar="RUN",
        ),
    ],
    folder: Annotated[
        Path,
        typer.Argument(
            help="Model folder to write; ends in the model's name. With --onnx a folder for its files.",
            show_default=False,
            parser=named,
            metavar="FOLDER",
        ),
    ],
    test: Annotated[
        Path | None,
        typer.Option("--test", help="Audio of speakers never trained on, to measure with.", show_default=False),
    ] = None,
    onnx: Annotated[
        bool,
        typer.Option("--onnx", help="Write a model's encoder.onnx, decoder.onnx and context.safetensors alone."),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Another name than that in the run's configuration.", show_default=False),
    ] = None,
    metrics: Annotated[
        str, typer.Option("--metrics", help="What the card has, comma-separated, as of q2d2 eval.")
    ] = CARD_METRICS,
    limit: Limit = None,
    texts: Texts = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            "--scores",
            help="Folder of q2d2 eval --out: what it holds is not measured again, the rest is added.",
            show_default=False,
        ),
    ] = None,
    notes: Annotated[
        Path | None, typer.Option("--notes", help="Markdown for the card: data, licences, limits.", show_default=False)
    ] = None,
    average_with: Annotated[
        list[str] | None,
        typer.Option(
            "--average-with",
            metavar="MODEL",
            help="Write the mean of the run's weights and this model's (name, folder or Hub id); can be repeated.",
            show_default=False,
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            "--share",
            min=0.0,
            max=1.0,
            help="What part of the mean is theirs, from 0 to 1; without it, each model counts as much as the run.",
            show_default=False,
        ),
    ] = None,
    sharpen: Annotated[
        float,
        typer.Option(
            "--sharpen",
            min=0.0,
            max=0.5,
            help="Make the peaks of decoded spectra higher and their valleys deeper by this part; 0.1 is much.",
        ),
    ] = 0.0,
    decodes: Annotated[
        list[str] | None,
        typer.Option(
            "--decodes",
            metavar="MODEL",
            help="The run went on from this model (name, folder or Hub id), and decodes its files; can be repeated.",
            show_default=False,
        ),
    ] = None,
    with_discriminators: Annotated[
        bool, typer.Option("--with-discriminators", help="Also write the discriminators, for fine-tuning.")
    ] = False,
    force: Force = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> int:
    """Write model.safetensors, config.json and a model card filled with measured numbers.

    q2d2 export RUN checkpoints/speech-3k-v5 --name speech-3k-v5 --test data/speech/test

    q2d2 export --onnx speech-3k FOLDER
    """
    if onnx:
        in_vain = {
            "--test": test,
            "--name": name,
            "--limit": limit,
            "--texts": texts,
            "--scores": scores,
            "--notes": notes,
            "--average-with": average_with,
            "--share": share,
            "--sharpen": sharpen,
            "--decodes": decodes,
            "--with-discriminators": with_discriminators,
        }
        for option, value in in_vain.items():
            if value:
                raise UsageError(f"{option} is for runs, and --onnx takes a model as it is: leave one of them out")
        return export_onnx(str(run), folder, force, quiet)
    if test is None:
        raise UsageError("--test is missing: name audio to measure the model with (or give --onnx)")
    from q2d2cli.checkpoints import CONFIG_NAME

    if (folder / CONFIG_NAME).exists() and not force:
        raise UsageError(f"{folder} already holds a model: use --force to overwrite it")
    if share is not None and not average_with:
        raise UsageError("--share is the part of other models in a mean: name them with --average-with")
    if notes:
        refuse_device(notes)
    try:
        text = notes.read_text(encoding="utf-8") if notes else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {notes}: {error}") from error
    from q2d2cli.evaluation.clips import choose_clips
    from q2d2cli.evaluation.compare import compare
    from q2d2cli.evaluation.metrics import METRICS, check_names
    from q2d2cli.evaluation.scoring import ScoringPlan
    from q2d2cli.training.export import add_card, export_run

    names = tuple(metrics.split(","))
    check_names(names)
    clips = choose_clips(test, limit, texts)
    cost = export_run(
        run,
        folder,
        with_discriminators=with_discriminators,
        average_with=average_with or [],
        share=share,
        sharpening=sharpen,
        decodes=decodes or [],
        name=name,
    )
    specs = [f"q2d2:{folder}", *PEERS]
    measured = compare(ScoringPlan(tuple(specs), None, names, device), clips, voice(quiet), out=scores)
    codecs = " ".join(f"-c {spec}" for spec in specs)
    options = (f" --limit {limit}" if limit else "") + (f" --texts {texts}" if texts else "")
    command = f"q2d2 eval --metrics {metrics} {codecs} {test}{options}"
    add_card(folder, cost=cost, measured=measured, command=command, notes=text)
    if not quiet:
        means = measured["codecs"][0]["datasets"]["all"]
        shown = ", ".join(f"{METRICS[metric].title} {means[metric]['mean']}" for metric in measured["metrics"])
        print(f"{folder}: {shown}", file=sys.stderr)
    return 0


def export_onnx(name: str, folder: Path, force: bool, quiet: bool) -> int:
    """Write a model's two graphs, and its context model beside them."""
    from q2d2cli.checkpoints import find
    from q2d2cli.runtimes.graph import export_folder

    checkpoint = find(name)
    for path in export_folder(checkpoint, folder, force):
        if not quiet:
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, of {checkpoint.config.name}", file=sys.stderr)
    return 0
