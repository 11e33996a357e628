"""`q2d2 decode`: .q2d files to audio files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q2d2cli.cli.common import Device, Force, Json, OutDir, Paths, Quiet, check_single, convert_all, plan

if TYPE_CHECKING:
    from q2d2cli.codec import Codec
    from q2d2cli.container.header import Header
    from q2d2cli.transcode import Progress, Summary


def decode(
    paths: Paths,
    out_dir: OutDir = None,
    force: Force = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Where the model is, if not found by the name in the file.", show_default=False
        ),
    ] = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Decode .q2d to audio, at the original's sample rate, channels and exact length.

    q2d2 decode in.q2d out.wav

    q2d2 decode FOLDER --out-dir OUT

    q2d2 decode in.q2d - | aplay
    """
    jobs = plan(paths, out_dir, ".wav", {".q2d"}, lambda path: path.suffix.lower() != ".q2d")
    check_single(jobs, out_dir, force)
    from q2d2cli.transcode import decode_file

    loaded: dict[str, Codec] = {}

    def codec_for(header: Header) -> Codec:
        from q2d2cli.checkpoints import find_weights
        from q2d2cli.codec import Codec

        wanted = model or str(find_weights(header.model, header.fingerprint).folder)
        if wanted not in loaded:
            loaded[wanted] = Codec.from_pretrained(wanted, device)
        return loaded[wanted]

    def convert(source: Path, target: Path, progress: Progress) -> Summary:
        return decode_file(codec_for, source, target, progress)

    return convert_all(jobs, out_dir, force, quiet, as_json, convert)
