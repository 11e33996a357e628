"""`q2d2 encode`: audio files to .q2d files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q2d2cli.checkpoints import DEFAULT_MODEL
from q2d2cli.cli.common import (
    Bitrate,
    Device,
    Force,
    Json,
    Model,
    OutDir,
    Output,
    Paths,
    Quiet,
    Raw,
    Runtime,
    SampleFormat,
    check_jobs,
    convert_all,
    destination,
    holds_q2d,
    loading,
    plan,
    raw_format,
)
from q2d2cli.cli.tag import (
    PANEL,
    Album,
    Artist,
    Comment,
    Date,
    Genre,
    Pictures,
    Title,
    Track,
    edits_of,
    named_texts,
)
from q2d2cli.errors import UsageError
from q2d2cli.files import is_direct, regular_file
from q2d2cli.latency import LIVE_BLOCK_SECONDS

if TYPE_CHECKING:
    from q2d2cli.audio import RawFormat
    from q2d2cli.container.header import Payload
    from q2d2cli.transcode import Progress, Summary


def encode(
    paths: Paths,
    output: Output = None,
    out_dir: OutDir = None,
    force: Force = False,
    model: Model = None,
    bitrate: Bitrate = None,
    device: Device = "auto",
    runtime: Runtime = "torch",
    robust: Annotated[
        bool, typer.Option("--robust", help="Payload that survives flipped bits and lost blocks; costs some bits.")
    ] = False,
    payload: Annotated[
        str | None,
        typer.Option(
            "--payload",
            help="coded (fewest bits), packed (needs no context model) or robust.",
            show_default="coded if the model has a context model",
        ),
    ] = None,
    effort: Annotated[
        int,
        typer.Option(
            "--effort", "-e", min=0, help="Rounds of search for better tokens; 20 is a good number, and slow."
        ),
    ] = 0,
    rate_weight: Annotated[
        float,
        typer.Option(
            "--lambda",
            min=0,
            metavar="X",
            help="Of --effort: what a bit per frame weighs, 1 say; the more, the fewer bits and the less quality.",
            show_default="0: bits do not count",
        ),
    ] = 0.0,
    parity: Annotated[
        str | None,
        typer.Option(
            "--parity", metavar="SHARE", help="Make so much of it mendable, 10% say: see repair.", show_default=False
        ),
    ] = None,
    raw: Raw = False,
    rate: Annotated[
        int | None, typer.Option("--rate", min=1, max=1_000_000, help="Of --raw: sample rate, Hz.", show_default=False)
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option("--channels", min=1, max=64, help="Of --raw: 1 if not given.", show_default=False),
    ] = None,
    sample_format: SampleFormat = None,
    live: Annotated[
        bool,
        typer.Option("--live", help="Write each block as soon as it can be known, for live listeners."),
    ] = False,
    block: Annotated[
        float | None,
        typer.Option("--block", help="Seconds of audio in a block of --live.", show_default=str(LIVE_BLOCK_SECONDS)),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read what was written and compare tokens; if not the same, remove it.")
    ] = False,
    title: Title = None,
    artist: Artist = None,
    album: Album = None,
    date: Date = None,
    genre: Genre = None,
    tracknumber: Track = None,
    comment: Comment = None,
    picture: Pictures = None,
    discard_comments: Annotated[
        bool,
        typer.Option("--discard-comments", help="Do not copy the input's tags.", rich_help_panel=PANEL),
    ] = False,
    discard_pictures: Annotated[
        bool,
        typer.Option("--discard-pictures", help="Do not copy the input's pictures.", rich_help_panel=PANEL),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Encode audio to .q2d: WAV, FLAC, Ogg, Opus, MP3 and more (with ffmpeg M4A, video ...), any rate and channels.

    q2d2 encode in.wav out.q2d

    q2d2 encode FOLDER --out-dir OUT

    q2d2 encode --title "A talk" --picture cover.jpg in.wav

    arecord -f cd | q2d2 encode - - > out.q2d

    ... | q2d2 encode --raw --rate 16000 - - > out.q2d

    arecord -f cd | q2d2 encode --live - - | q2d2 decode - - | aplay
    """
    from q2d2cli.audio import AUDIO_SUFFIXES

    mendable = None if parity is None else share(parity)
    paths, out_dir = destination(paths, output, out_dir)
    planned = plan(paths, out_dir, ".q2d", AUDIO_SUFFIXES, check_name)
    check_jobs(planned.jobs, out_dir, force)
    mode = payload_mode(payload, robust)
    form = input_format(raw, rate, channels, sample_format)
    name = choose(model, bitrate)
    if block is not None and not live:
        raise UsageError("--block is the size of the blocks of --live: give that, too")
    if verify and any(is_direct(target) for _, target in planned.jobs):
        raise UsageError("--verify reads the output again, and a pipe or device gives nothing back: name a file")
    texts = named_texts(title, artist, album, date, genre, tracknumber)
    tags = edits_of(texts, comment, picture, not discard_comments, not discard_pictures)
    seconds = (LIVE_BLOCK_SECONDS if block is None else block) if live else None
    if effort and runtime == "onnx":
        raise UsageError("--effort searches with gradients, which --runtime onnx has not: take --runtime torch")
    with loading():
        from q2d2cli.coder import Coder
        from q2d2cli.passes import files_at_once
        from q2d2cli.streaming import check_search
        from q2d2cli.transcode import encode_file

        codec = Coder.from_pretrained(name, device, runtime)
    at_once = 1 if effort else files_at_once(codec.network.threads)
    check_search(codec.header(codec.sample_rate, 1, None, mode), effort, rate_weight)

    def convert(source: Path, target: Path, progress: Progress) -> Summary:
        return encode_file(
            codec,
            source,
            target,
            progress,
            mode,
            effort,
            form,
            live=seconds,
            parity=mendable,
            verify=verify,
            rate_weight=rate_weight,
            tags=tags,
        )

    return convert_all(planned, out_dir, force, quiet, as_json, convert, at_once)


def share(text: str) -> float:
    """What `--parity` says.

    Raises:
        UsageError: if that is no share, or one that is not possible.
    """
    from q2d2cli.container.parity import check_share

    try:
        return check_share(float(text[:-1]) / 100 if text.endswith("%") else float(text))
    except ValueError as error:
        raise UsageError(f"--parity {text!r} is no share: write 10%, say") from error


def check_name(path: Path) -> None:
    """Raise UsageError if `path` is rather a second recording than an output."""
    from q2d2cli.audio import AUDIO_SUFFIXES

    if path.suffix.lower() in AUDIO_SUFFIXES:
        raise UsageError(
            f"{path} is named like audio, and encode writes .q2d: name the output so, or give several inputs --out-dir"
        )
    status = None if is_direct(path) else regular_file(path, 1)
    if status and status.st_size and path.suffix.lower() != ".q2d" and not holds_q2d(path):
        raise UsageError(f"{path} is there and no .q2d file: name another output, or give several inputs --out-dir")


def input_format(raw: bool, rate: int | None, channels: int | None, sample_format: str | None) -> RawFormat | None:
    """What `--raw` and its companions say about the input; None without it.

    Raises:
        UsageError: if one of them is missing or in vain.
    """
    from q2d2cli.audio import SAMPLE_FORMATS, RawFormat

    name = raw_format(raw, sample_format)
    if name is None:
        if rate is not None or channels is not None:
            raise UsageError("--rate and --channels are for audio without header: add --raw, or leave them out")
        return None
    if rate is None:
        raise UsageError("--raw needs --rate: audio without header does not say its sample rate")
    return RawFormat(rate, channels or 1, SAMPLE_FORMATS[name])


def payload_mode(payload: str | None, robust: bool) -> Payload | None:
    """The payload mode that `--payload` and `--robust` ask for, None if neither does.

    Raises:
        UsageError: if there is no such mode, or they contradict each other.
    """
    from q2d2cli.container.header import PAYLOADS

    if payload is None:
        return "robust" if robust else None
    if payload not in PAYLOADS:
        raise UsageError(f"unknown payload {payload!r}: choose from {', '.join(PAYLOADS)}")
    if robust and payload != "robust":
        raise UsageError(f"--robust and --payload {payload} contradict each other: give one of them")
    return payload


def choose(model: str | None, bitrate: int | None) -> str:
    """Name of the model that `--model` or `--bitrate` asks for.

    Raises:
        UsageError: if both are given, or no model here has that bit rate.
    """
    if bitrate is None:
        return model or DEFAULT_MODEL
    if model is not None:
        raise UsageError("--model and --bitrate both choose the model: give one of them")
    from q2d2cli.checkpoints import available, version

    here = sorted(available(), key=lambda checkpoint: version(checkpoint.folder.name)[1])
    # Students are taken by name alone.
    rates = {round(c.config.bit_rate / 1000): c.folder.name for c in here if c.lender is None}
    if bitrate not in rates:
        choice = ", ".join(map(str, sorted(rates))) or "none"
        raise UsageError(f"no model for {bitrate} kbit/s here: choose from {choice}, or name one with --model")
    return rates[bitrate]
