"""`q2d2 repair`: a damaged .q2d file made whole by its parity. Needs no model and imports no torch."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from q2d2cli.cli.common import Force
from q2d2cli.errors import Q2D2Error
from q2d2cli.files import PIPE, atomic_output, check_output, open_binary


def repair(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A .q2d file; - is a pipe.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The mended .q2d file.", show_default=False)],
    force: Force = False,
) -> int:
    """Write a damaged file whole again, bit by bit as it was, if it was made with encode --parity.

    q2d2 repair in.q2d out.q2d
    """
    from q2d2cli.container.header import FormatError
    from q2d2cli.container.mending import Mended
    from q2d2cli.container.stream import Reader

    check_output(target, force, source)
    name = "standard input" if source == PIPE else str(source)
    with Mended(open_binary(source)) as mended:
        data = mended.read()
        mender = mended.mender
    try:
        reader = Reader(io.BytesIO(data))
        for _ in reader.blocks():
            pass
    except FormatError as error:
        why = "its parity is not enough" if mender.windows else "it has no parity, or none is left"
        raise Q2D2Error(f"{name} cannot be mended ({why}): it {error}") from error
    if reader.faults:
        raise Q2D2Error(f"{name} cannot be mended: {len(reader.faults)} faults are left")
    with atomic_output(target) as file:
        file.write(data)
    done = f"{mender.mended} bytes mended" if mender.mended else "there was nothing to mend"
    print(f"{target}: {len(data)} bytes, {reader.data_blocks} blocks, whole; {done}", file=sys.stderr)
    return 0
