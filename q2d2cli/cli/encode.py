"""`q2d2 encode`: audio files to .q2d files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q2d2cli import DEFAULT_MODEL
from q2d2cli.cli.common import Device, Force, Json, OutDir, Paths, Quiet, check_single, convert_all, plan

if TYPE_CHECKING:
    from q2d2cli.transcode import Progress, Summary


def encode(
    paths: Paths,
    out_dir: OutDir = None,
    force: Force = False,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Model name, folder or Hugging Face Hub id.")
    ] = DEFAULT_MODEL,
    device: Device = "auto",
    robust: Annotated[
        bool, typer.Option("--robust", help="Payload that survives flipped bits and lost blocks; costs some bits.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Encode audio to .q2d: WAV, FLAC, Ogg, Opus, MP3 and more, any sample rate, any number of channels.

    q2d2 encode in.wav out.q2d

    q2d2 encode FOLDER --out-dir OUT

    arecord -f cd | q2d2 encode - - > out.q2d
    """
    from q2d2cli.audio import AUDIO_SUFFIXES

    jobs = plan(paths, out_dir, ".q2d", AUDIO_SUFFIXES, lambda path: path.suffix.lower() not in AUDIO_SUFFIXES)
    check_single(jobs, out_dir, force)
    from q2d2cli.codec import Codec
    from q2d2cli.transcode import encode_file

    codec = Codec.from_pretrained(model, device)

    def convert(source: Path, target: Path, progress: Progress) -> Summary:
        return encode_file(codec, source, target, progress, robust)

    return convert_all(jobs, out_dir, force, quiet, as_json, convert)
