"""A block's pair indices to bytes and back, in the payload mode that the header names. Imports no torch."""

from __future__ import annotations

import numpy as np

from q2d2cli.container.fields import fields_bytes, pack_fields, unpack_fields
from q2d2cli.container.header import Header
from q2d2cli.container.labelling import origins
from q2d2cli.container.packing import pack, payload_bytes, unpack


def channel_bytes(header: Header, frames: int) -> int:
    """Bytes of one channel's `frames` frames."""
    if header.payload == "robust":
        return fields_bytes(frames, header.quantizer)
    return payload_bytes(frames, header.quantizer.sizes)


def to_payload(header: Header, indices: np.ndarray) -> bytes:
    """Pair indices `(channels, frames, pairs)` to bytes, channel after channel.

    Raises:
        ValueError: if the shape is wrong or an index is out of range.
    """
    if header.payload == "robust":
        return b"".join(pack_fields(channel, header.quantizer) for channel in indices)
    return b"".join(pack(channel, header.quantizer.sizes) for channel in indices)


def from_payload(header: Header, data: bytes, frames: int, strict: bool = True) -> np.ndarray:
    """Inverse of `to_payload`: bytes to `(channels, frames, pairs)` int64.

    Args:
        header: of the file.
        data: the packed pair indices of one block.
        frames: how many frames they are.
        strict: whether mixed radix bits that no writer writes are an error; otherwise padding is
            ignored and numbers are taken modulo the group's. Robust payloads have no such bits.

    Raises:
        FormatError: if the number of bytes is wrong, or the bits are (`strict`).
    """
    size = channel_bytes(header, frames)
    parts = [data[i * size : (i + 1) * size] for i in range(header.channels)]
    if header.payload == "robust":
        return np.stack([unpack_fields(part, frames, header.quantizer) for part in parts])
    return np.stack([unpack(part, frames, header.quantizer.sizes, strict) for part in parts])


def concealment(header: Header, frames: int) -> np.ndarray:
    """What stands in for lost frames, `(channels, frames, pairs)` int64: the point nearest the origin of each pair."""
    return np.tile(origins(header.quantizer), (header.channels, frames, 1))
