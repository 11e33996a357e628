"""What the fuzzers run: everything that reads a .q2d file, on any bytes; fails on what is not a clear error."""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from q2d2cli.container.header import FormatError
from q2d2cli.container.mending import Mended
from q2d2cli.container.stream import Reader
from q2d2cli.container.tagging import with_tags
from q2d2cli.container.tags import Picture, Tags

if TYPE_CHECKING:
    from q2d2cli import Codec

MOST_SECONDS = 20.0
"""Of audio that is decoded; damage that is concealed can be hours."""
MOST_BYTES = 2**16
"""Longer inputs find nothing that shorter ones do not."""
TAGS = Tags((("TITLE", "T"),), (Picture(b"x", "image/png"),))


def target(data: bytes) -> None:
    """Read `data` every way there is: strict, concealed, mended, and a part of it; and put tags into it.

    Raises:
        AssertionError: if what was read does not fit what was said.
        Exception: any but FormatError is a bug.
    """
    data = data[:MOST_BYTES]
    for conceal, mend in ((False, False), (True, False), (True, True)):
        with contextlib.suppress(FormatError):
            reader = Reader(Mended(io.BytesIO(data)) if mend else io.BytesIO(data), conceal)  # type: ignore[arg-type]
            walk(reader)
    with contextlib.suppress(FormatError):
        reader = Reader(io.BytesIO(data), conceal=True)
        reader.length()
        for block in reader.part(3 * reader.header.frames_per_block, 4 * reader.header.frames_per_block):
            assert block.frames > 0
    with contextlib.suppress(FormatError):
        if len(changed := with_tags(data, TAGS)) < MOST_BYTES:
            reader = Reader(io.BytesIO(changed))
            walk(reader)
            assert reader.tags == TAGS


def walk(reader: Reader) -> None:
    """Every block, and what is in those that are small."""
    frames = values = 0
    header = reader.header
    for block in reader.blocks():
        assert block.first == frames
        frames += block.frames
        size = block.frames * header.channels * header.quantizer.num_indices
        if block.state != "lost" and size < 2**20 and (values := values + size) < 2**22:
            indices = reader.unpack(block)
            assert indices.shape == (header.channels, block.frames, header.quantizer.num_indices)
            assert (indices >= 0).all()
            assert (indices < header.quantizer.sizes).all()
        if frames > 2**24:
            return
    assert reader.frames == frames
    assert reader.num_samples is not None
    if not reader.faults:
        assert header.frames_for(reader.num_samples) == frames


class Enough(Exception):
    """So much audio need not be decoded to the end."""


@functools.cache
def tiny_codec() -> Codec:
    """The tests' tiny model, for the files in the corpus whose names begin with `tiny`."""
    import torch
    from conftest import TINY

    from q2d2cli import Codec
    from q2d2cli.models.model import CodecModel

    torch.manual_seed(0)
    return Codec(CodecModel(TINY).eval(), bytes(8))


def decode_target(data: bytes) -> None:
    """Decode `data` as `q2d2 decode` does, all of it, its damage concealed, and a part.

    Raises:
        AssertionError: if there is other audio than was said, or something is left behind an error.
        Exception: any but Q2D2Error is a bug.
    """
    from q2d2cli.errors import Q2D2Error
    from q2d2cli.transcode import decode_file

    def watch(seconds: float, total: float | None, rate: float) -> None:
        if seconds > MOST_SECONDS:
            raise Enough

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.q2d", Path(folder) / "out.raw"
        source.write_bytes(data[:MOST_BYTES])
        for conceal, start, duration in ((False, 0.0, None), (True, 0.0, None), (True, 0.02, 0.05)):
            target.unlink(missing_ok=True)
            try:
                done = decode_file(
                    lambda header: tiny_codec(), source, target, watch, "f32le", start, duration, conceal
                )
            except (Q2D2Error, Enough):
                assert {path.name for path in Path(folder).iterdir()} == {"in.q2d"}
                continue
            samples = round(done.duration * done.sample_rate)
            assert target.stat().st_size == 4 * samples * done.channels
