"""`q2d2 channel`: a .q2d file after a bad transmission. Needs no model and imports no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from q2d2cli.cli.common import Force, Json
from q2d2cli.errors import UsageError
from q2d2cli.files import PIPE, atomic_output, check_output, descriptor, open_binary


def channel(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A .q2d file; - is a pipe.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The damaged .q2d file.", show_default=False)],
    ber: Annotated[
        float | None, typer.Option("--ber", help="Probability of a payload bit to be flipped.", show_default=False)
    ] = None,
    packet_loss: Annotated[
        float | None, typer.Option("--packet-loss", help="Probability of a block to be dropped.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed does the same damage.")] = 1,
    force: Force = False,
    as_json: Json = False,
) -> int:
    """Damage a .q2d file as a channel would: flipped bits or lost blocks. Headers and checksums stay as they are.

    q2d2 channel in.q2d out.q2d --ber 1e-3

    q2d2 channel in.q2d out.q2d --packet-loss 0.05 --seed 7
    """
    import numpy as np

    from q2d2cli.container.channel import Channel, damage_file
    from q2d2cli.container.header import MAGIC, FormatError

    check_output(target, force, source)
    try:
        medium = Channel(ber, packet_loss, np.random.Generator(np.random.PCG64(seed)))
    except ValueError as error:
        raise UsageError(f"{error}: use --ber or --packet-loss") from error
    try:
        with open_binary(source) as file:
            data = file.read(len(MAGIC))
            if data == MAGIC:  # else it may be without end
                data += file.read()
        data = damage_file(data, medium)
    except FormatError as error:
        raise FormatError(f"{'standard input' if source == PIPE else source} {error}") from error
    with atomic_output(target) as output:
        output.write(data)
    facts = {
        "input": str(source),
        "output": str(target),
        "ber": ber,
        "packet_loss": packet_loss,
        "seed": seed,
        "blocks": medium.blocks,
        "bits": medium.bits,
        "flipped_bits": medium.flipped_bits,
        "damaged_blocks": medium.hit_blocks,
        "lost_blocks": medium.lost_blocks,
    }
    if as_json:
        print(json.dumps(facts), file=sys.stderr if descriptor(target, 1) == 1 else sys.stdout)
    else:
        print(
            f"{target}: {medium.flipped_bits} of {medium.bits} payload bits flipped in {medium.hit_blocks} of "
            f"{medium.blocks} blocks, {medium.lost_blocks} blocks lost",
            file=sys.stderr,
        )
    return 0
