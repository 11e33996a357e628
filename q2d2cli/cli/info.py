"""`q2d2 info`: what a .q2d file says about itself. Needs no model and imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer

from q2d2cli.cli.common import Json, damage_line
from q2d2cli.cli.tag import picture_line, printable
from q2d2cli.errors import Q2D2Error, report

if TYPE_CHECKING:
    from q2d2cli.container.tags import Tags

LONGEST_TEXT = 120
"""Characters of a tag that are shown."""


def info(
    paths: Annotated[list[Path], typer.Argument(help="One or more .q2d files.", show_default=False)],
    as_json: Json = False,
) -> int:
    """Show what .q2d files hold, and check that they are whole (every checksum is verified)."""
    code = 0
    for number, path in enumerate(paths):
        try:
            facts = facts_of(path)
        except Q2D2Error as error:
            if len(paths) == 1:
                raise
            report(error)
            code = max(code, error.exit_code)
            continue
        if facts["faults"]:
            report(f"{path} {damage_line(facts['faults'])}")
            code = max(code, Q2D2Error.exit_code)
        if as_json:
            faults = [asdict(fault) for fault in facts["faults"]]
            print(json.dumps(facts | {"faults": faults, "tags": tag_facts(facts["tags"])}))
        else:
            if number:
                print()
            print(as_text(facts))
    return code


def facts_of(path: Path) -> dict[str, Any]:
    """Everything there is to know about a file without its model.

    Raises:
        UsageError: if there is no such file.
        Q2D2Error: if its header is damaged, or it is none of these files.
    """
    from q2d2cli.container.header import FormatError
    from q2d2cli.container.packing import group_frames, number_bits
    from q2d2cli.container.stream import Reader
    from q2d2cli.files import PIPE, open_binary

    try:
        with Reader(open_binary(path), conceal=True) as reader:
            largest = max((block.end - block.offset for block in reader.blocks()), default=0)
    except FormatError as error:
        raise FormatError(f"{'standard input' if path == PIPE else path} {error}") from error
    header, samples = reader.header, reader.num_samples or 0
    group = group_frames(header.quantizer.sizes)
    duration = samples / header.original_rate
    tokens, bits, rate = reader.frames * header.channels, header.bits_per_frame, header.bit_rate
    if header.payload == "coded" and tokens:
        # Of the frames that are there.
        there = tokens - reader.lost_blocks * header.frames_per_block * header.channels
        bits = 8 * reader.payload_bytes / max(1, there)
        rate = bits * header.frame_rate * header.channels
    return {
        "file": str(path),
        "version": ".".join(map(str, header.version)),
        "model": header.model,
        "fingerprint": header.fingerprint.hex(),
        "grid": header.quantizer.kind,
        "levels": list(header.quantizer.levels),
        "points": list(header.quantizer.sizes),
        "codebook": header.quantizer.codebook_size,
        "payload": header.payload,
        "context": header.context.hex() or None,
        "bits_per_frame": round(bits, 4),
        "packed_bits_per_frame": number_bits(header.quantizer.codebook_size, group) / group,
        "hop": header.hop,
        "model_rate": header.sample_rate,
        "frame_rate": round(header.frame_rate, 4),
        "sample_rate": header.original_rate,
        "channels": header.channels,
        "samples": samples,
        "duration": duration,
        "frames": reader.frames,
        "tokens": tokens,
        "blocks": reader.data_blocks,
        "damaged_blocks": reader.damaged_blocks,
        "lost_blocks": reader.lost_blocks,
        "lost_seconds": round(reader.lost_seconds, 4),
        "faults": reader.faults,
        "largest_block": largest,
        "parity_blocks": reader.parity_blocks,
        **(parity_facts(path) if reader.parity_blocks and path != PIPE else {}),
        "metadata_blocks": reader.metadata_blocks,
        "tags": reader.tags,
        "tag_bytes": reader.tag_bytes,
        "bytes": reader.bytes_read,
        "payload_bytes": reader.payload_bytes,
        "bit_rate": reader.rates()[0] or None,
        "payload_bit_rate": rate,
    }


def tag_facts(tags: Tags) -> dict[str, Any]:
    """Comments by their names, and what there is to say of pictures."""
    comments: dict[str, list[str]] = {}
    for name, value in tags.comments:
        comments.setdefault(name.upper(), []).append(value)
    pictures = [
        {
            "kind": picture.shows,
            "mime": picture.mime,
            "description": picture.description,
            "width": picture.width,
            "height": picture.height,
            "bytes": len(picture.data),
        }
        for picture in tags.pictures
    ]
    return {"comments": comments, "pictures": pictures}


def parity_facts(path: Path) -> dict[str, Any]:
    """What parity the file has, and what is left of the damage when it is mended."""
    from q2d2cli.container.header import FormatError
    from q2d2cli.container.mending import Mended
    from q2d2cli.container.stream import Reader
    from q2d2cli.files import open_binary

    with Mended(open_binary(path)) as mended:
        try:
            reader = Reader(cast(BinaryIO, mended), conceal=True)
            for _ in reader.blocks():
                pass
            left: float | None = reader.lost_seconds
            whole = not reader.faults
        except FormatError:
            left, whole = None, False
        facts = mended.mender.facts
    return {
        "window_bytes": facts.length if facts else 0,
        "mendable_bytes": facts.mendable if facts else 0,
        "mended_bytes": mended.mender.mended,
        "mends_whole": whole,
        "lost_seconds_mended": left,
    }


def as_text(facts: dict[str, Any]) -> str:
    """The facts as aligned lines."""
    whole = f"{facts['bit_rate'] / 1000:.2f} kbit/s with header and checksums" if facts["bit_rate"] else "no audio"
    pcm = facts["samples"] * facts["channels"] * 2
    damaged = facts["damaged_blocks"] + facts["lost_blocks"]
    state = f"whole: {facts['blocks']} blocks checked"
    if facts["faults"]:
        state = f"damaged: {damaged} of {facts['blocks']} blocks"
    payload = f"{facts['payload']}, {facts['bits_per_frame']:.3f} bits per frame"
    if facts["payload"] == "robust":
        extra = facts["bits_per_frame"] / facts["packed_bits_per_frame"] - 1
        payload += f" (packed {facts['packed_bits_per_frame']:.3f}: robust costs {extra:.1%} more)"
    if facts["payload"] == "coded":
        saved = 1 - facts["bits_per_frame"] / facts["packed_bits_per_frame"]
        payload += f" (packed {facts['packed_bits_per_frame']:.3f}: {saved:.1%} saved), context {facts['context']}"
    rows = [
        ("file", f"{facts['file']} (.q2d version {facts['version']}, {state})"),
        (
            "audio",
            f"{facts['duration']:.3f} s, {facts['sample_rate']} Hz, {facts['channels']} ch, {facts['samples']} samples",
        ),
        ("size", f"{facts['bytes']} bytes, 1/{pcm / (facts['bytes'] - facts['tag_bytes']):.0f} of 16-bit PCM"),
        ("bit rate", f"{facts['payload_bit_rate'] / 1000:.2f} kbit/s payload, {whole}"),
        (
            "tokens",
            f"{facts['tokens']} ({facts['frame_rate']:.1f} per second and channel), codebook of {facts['codebook']}",
        ),
        (
            "quantizer",
            f"{facts['grid']}, levels {','.join(map(str, facts['levels']))}, "
            f"points {' x '.join(map(str, facts['points']))}",
        ),
        (
            "frames",
            f"{facts['frames']} of {facts['hop']} samples at {facts['model_rate']} Hz",
        ),
        ("payload", payload),
        ("model", f"{facts['model']}, weights {facts['fingerprint']}"),
    ]
    tags = facts["tags"]
    if tags:
        counts = f"comments: {len(tags.comments)}, pictures: {len(tags.pictures)}"
        rows.append(("tags", f"{facts['tag_bytes']} bytes, not counted in rates; {counts}"))
        rows += [("", cut(f"{name}={printable(text)}")) for name, text in tags.comments]
        rows += [("", picture_line(picture)) for picture in tags.pictures]
    if facts.get("window_bytes"):
        mends = f"mends {facts['mendable_bytes']} lost bytes in {facts['window_bytes']}"
        less = facts["mendable_bytes"] < facts["largest_block"]
        rows.append(("parity", f"{mends}, less than a block of {facts['largest_block']}" if less else mends))
        if facts["faults"]:
            rest = "all of it" if facts["mends_whole"] else f"all but {facts['lost_seconds_mended'] or 0:.2f} s of it"
            rows.append(("repair", f"q2d2 repair mends {rest}" if facts["mended_bytes"] else "cannot be mended"))
    rows += [("damage", str(fault)) for fault in facts["faults"]]
    return "\n".join(f"{name:<10} {value}" for name, value in rows)


def cut(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 4]} ..."
