"""A simulated channel: flips bits of packed pair indices or drops whole blocks. Imports no torch.

Headers, block heads and numbers of frames pass unharmed, as if a transport protected them; so do
the checksums, and a reader can tell which blocks were hit.
"""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np

from q2d2cli.container.header import Header, Payload, block_frames
from q2d2cli.container.payload import concealment, from_payload, to_payload
from q2d2cli.container.stream import Reader


class Channel:
    """Damages the payloads sent through it, and counts.

    Args:
        ber: probability of each bit to be flipped, in [0, 1]; None for a channel that drops blocks.
        packet_loss: probability of each block to be dropped, in [0, 1]; None for one that flips bits.
        rng: decides which.

    Attributes:
        blocks: data blocks sent.
        bits: bits of packed pair indices sent, padding among them.
        flipped_bits: those that were flipped.
        hit_blocks: blocks with a flipped bit.
        lost_blocks: blocks that were dropped.

    Raises:
        ValueError: unless exactly one of the two probabilities is given, in [0, 1].
    """

    def __init__(self, ber: float | None, packet_loss: float | None, rng: np.random.Generator) -> None:
        given = [value for value in (ber, packet_loss) if value is not None]
        if len(given) != 1:
            raise ValueError("a channel needs a bit error rate or a packet loss, exactly one of them")
        if not 0 <= given[0] <= 1:
            raise ValueError(f"probability {given[0]} is out of range: it must be between 0 and 1")
        self._ber, self._loss, self._rng = ber, packet_loss, rng
        self.blocks = self.bits = self.flipped_bits = self.hit_blocks = self.lost_blocks = 0

    def send(self, payload: bytes) -> bytes | None:
        """What arrives of one block's packed pair indices; None if it is dropped."""
        self.blocks += 1
        self.bits += 8 * len(payload)
        if self._loss is not None:
            lost = bool(self._rng.random() < self._loss)
            self.lost_blocks += lost
            return None if lost else payload
        assert self._ber is not None
        flips = self._rng.random(8 * len(payload)) < self._ber
        self.flipped_bits += int(flips.sum())
        self.hit_blocks += bool(flips.any())
        return (np.frombuffer(payload, np.uint8) ^ np.packbits(flips, bitorder="little")).tobytes()


def damage_file(data: bytes, channel: Channel) -> bytes:
    """A .q2d file as it comes out of `channel`.

    Raises:
        FormatError: if `data` is not a .q2d file, or one that a reader would refuse.
    """
    reader = Reader(io.BytesIO(data))
    parts, copied = [], 0
    for block in reader.blocks():
        if block.state == "lost":
            continue
        arrived = channel.send(block.packed.payload)
        if arrived is None:
            parts.append(data[copied : block.offset])
        else:
            parts += [data[copied : block.begin], arrived, data[block.begin + len(arrived) : block.end]]
        copied = block.end
    return b"".join([*parts, data[copied:]])


def channel_header(header: Header, payload: Payload) -> Header:
    """The header with which tokens go over a channel in this payload mode: in blocks of a robust file in both."""
    if header.payload == "robust":
        return replace(header, payload=payload, context=b"")
    size = block_frames(header.quantizer, header.frame_rate, header.channels, "robust")
    return replace(header, payload=payload, context=b"", frames_per_block=size)


def damage_indices(header: Header, indices: np.ndarray, channel: Channel) -> np.ndarray:
    """Pair indices as they come out of `channel`, sent block by block in the header's payload mode.

    The same as writing a file, `damage_file` and reading it for a robust payload. A packed one, which a reader would
    refuse, is read by force: padding is ignored and a group's number is taken modulo `C**k`. In both modes lost blocks
    hold the points nearest the origin.

    Args:
        header: of `channel_header`.
        indices: `(channels, frames, pairs)`.
        channel: what they pass; counts.

    Returns:
        The same shape, int64.

    Raises:
        ValueError: if the grids are too large for a robust payload.
    """
    arrived = [indices[:, :0]]
    for first in range(0, indices.shape[1], header.frames_per_block):
        block = indices[:, first : first + header.frames_per_block]
        data = channel.send(to_payload(header, block))
        if data is None:
            arrived.append(concealment(header, block.shape[1]))
        else:
            arrived.append(from_payload(header, data, block.shape[1], strict=False))
    return np.concatenate(arrived, axis=1)
