"""The header of format version 1, which is read but no longer written, and its block heads (docs/format.md)."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

from q2d2cli.container.header import CRC, PREFIX, UNKNOWN, FormatError, Header, read_exactly
from q2d2cli.container.header import PAYLOADS as ALL_PAYLOADS
from q2d2cli.quantizers.spec import KINDS, QuantizerSpec

PAYLOADS = ALL_PAYLOADS[:2]
LENGTH = struct.Struct("<H")
FIXED = struct.Struct("<BBBBHHIIQH8s")
"""Kind, payload mode, number of levels, length of the name, hop, channels, model rate, original rate, samples,
frames per block, fingerprint."""
BLOCK = struct.Struct("<III")
"""Type (low byte) and payload length (the other three), sequence number, CRC32."""
FRAMES = struct.Struct("<H")
SAMPLES = struct.Struct("<Q")
DATA, END = 0x01, 0x02
SKIPPABLE = 0x80
"""Block types from here on may be skipped by a reader that does not know them."""


def read_rest(file: BinaryIO, prefix: bytes) -> tuple[Header, int]:
    """Read what follows magic and version; returns the header and its length in bytes.

    Raises:
        FormatError: if it is truncated or damaged.
    """
    prefix += read_exactly(file, LENGTH.size)
    (length,) = LENGTH.unpack_from(prefix, PREFIX.size)
    if length < len(prefix) + FIXED.size + CRC.size:
        raise FormatError("is damaged: its header is too short")
    data = prefix + read_exactly(file, length - len(prefix))
    if zlib.crc32(data[: -CRC.size]) != CRC.unpack(data[-CRC.size :])[0]:
        raise FormatError("is damaged: the checksum of its header does not match")
    kind, mode, dim, name_length, hop, channels, rate, original, samples, frames, mark = FIXED.unpack_from(
        data, len(prefix)
    )
    variable = data[len(prefix) + FIXED.size : -CRC.size]
    if len(variable) < 2 * dim + name_length:
        raise FormatError("is damaged: its header is too short for its fields")
    if kind >= len(KINDS) or mode >= len(PAYLOADS):
        what = f"quantizer kind {kind}" if kind >= len(KINDS) else f"payload mode {mode}"
        raise FormatError(f"uses {what}, which this q2d2 does not know: upgrade q2d2")
    try:
        header = Header(
            quantizer=QuantizerSpec(KINDS[kind], struct.unpack_from(f"<{dim}H", variable)),
            hop=hop,
            sample_rate=rate,
            model=variable[2 * dim : 2 * dim + name_length].decode(),
            fingerprint=mark,
            original_rate=original,
            channels=channels,
            num_samples=None if samples == UNKNOWN else samples,
            frames_per_block=frames,
            version=(prefix[PREFIX.size - 2], prefix[PREFIX.size - 1]),
            payload=PAYLOADS[mode],
        )
    except ValueError as error:
        raise FormatError(f"has an impossible header: {error}") from error
    return header, length
