"""Blocks' pair indices to bytes and back, in the payload mode that the header names. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from q2d2cli.container.coding import library
from q2d2cli.container.coding.blocks import BlockCoder
from q2d2cli.container.fields import fields_bytes, pack_fields, unpack_fields
from q2d2cli.container.header import MAX_PAYLOAD, FormatError, Header
from q2d2cli.container.labelling import origins
from q2d2cli.container.packing import pack, payload_bytes, unpack


@dataclass(frozen=True)
class Packed:
    """One block's pair indices as bytes."""

    payload: bytes
    frames: int
    plain: bool = False
    """Whether a block of a coded file is packed, because that is shorter."""


def coder_for(header: Header) -> BlockCoder:
    """The coder with the context model that the header of a coded file names.

    Raises:
        FormatError: if it is not here, or made for other grids.
    """
    model = library.find(header.context, header.model)
    if model.sizes != header.quantizer.sizes:
        raise FormatError(f"has a header that contradicts its context model {header.context.hex()}: other grids")
    return BlockCoder(model)


def pack_blocks(header: Header, blocks: Sequence[np.ndarray]) -> list[Packed]:
    """Pair indices of blocks, each `(channels, frames, pairs)`, to bytes.

    Raises:
        ValueError: if a shape is wrong or an index is out of range.
        FormatError: if the file is coded and its context model is not here.
    """
    plain = [to_payload(header, block) for block in blocks]
    frames = [block.shape[1] for block in blocks]
    if header.payload != "coded":
        return [Packed(data, count) for data, count in zip(plain, frames, strict=True)]
    coded = coder_for(header).encode(blocks)
    return [
        Packed(code, count) if len(code) < len(data) else Packed(data, count, plain=True)
        for code, data, count in zip(coded, plain, frames, strict=True)
    ]


def unpack_blocks(header: Header, blocks: Sequence[Packed]) -> list[np.ndarray]:
    """Inverse of `pack_blocks`: each block's pair indices, `(channels, frames, pairs)` int64.

    Raises:
        FormatError: if a payload is none that a writer writes, or the context model is not here.
    """
    coded = [] if header.payload != "coded" else [block for block in blocks if not block.plain]
    if coded:
        counts = [block.frames for block in coded]
        # Their bytes say little about their frames: what could not be a packed block is none at all.
        if plain_bytes(header, max(counts)) > MAX_PAYLOAD:
            raise FormatError(f"is damaged: a block of {max(counts)} frames is larger than a block can be")
        decoded = coder_for(header).decode([block.payload for block in coded], counts, header.channels)
        found = iter(decoded)
    return [
        next(found)
        if header.payload == "coded" and not block.plain
        else from_payload(header, block.payload, block.frames)
        for block in blocks
    ]


def plain_bytes(header: Header, frames: int) -> int:
    """Bytes of `frames` frames of all channels; of a coded file, when packed."""
    return header.channels * channel_bytes(header, frames)


def channel_bytes(header: Header, frames: int) -> int:
    """Bytes of one channel's `frames` frames, not entropy coded."""
    if header.payload == "robust":
        return fields_bytes(frames, header.quantizer)
    return payload_bytes(frames, header.quantizer.sizes)


def to_payload(header: Header, indices: np.ndarray) -> bytes:
    """Pair indices `(channels, frames, pairs)` to bytes, channel after channel, not entropy coded.

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
