"""Tokens after a transmission over a bad channel, to measure what each payload mode and quantizer withstands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from q2d2cli.codec import Tokens
from q2d2cli.container.channel import Channel
from q2d2cli.container.header import Payload, block_frames
from q2d2cli.container.payload import concealment, from_payload, to_payload


def damage(
    tokens: Tokens, payload: Payload, ber: float | None, packet_loss: float | None, rng: np.random.Generator
) -> Tokens:
    """Send tokens over a channel block by block and read what arrives, whatever it is.

    The same as `save`, `q2d2 channel` and `load` for a robust payload. A packed one, which `load`
    would refuse, is read by force: padding is ignored and a group's number is taken modulo
    `C**k`. In both modes blocks are those of a robust file, and lost ones hold the points nearest the origin.

    Args:
        tokens: what is sent.
        payload: `packed` or `robust`, the payload mode on the channel.
        ber: probability of each payload bit to be flipped, in [0, 1]; or None.
        packet_loss: probability of each block to be dropped, in [0, 1]; or None.
        rng: decides which; `numpy.random.Generator(numpy.random.PCG64(seed))` is that of `q2d2 channel`.

    Returns:
        As many frames as went in, with `header.payload` as asked, so that `bit_rate` is that of
        the channel. A block counts as damaged if one of its bits was flipped.

    Raises:
        ValueError: unless exactly one of `ber` and `packet_loss` is given, in [0, 1], or if the
            grids are too large for a robust payload.
    """
    header = replace(tokens.header, payload=payload)
    if tokens.header.payload != "robust":
        size = block_frames(header.quantizer, header.frame_rate, header.channels, "robust")
        header = replace(header, frames_per_block=size)
    channel = Channel(ber, packet_loss, rng)
    sent = tokens.indices.numpy()
    arrived = [sent[:, :0]]
    for first in range(0, sent.shape[1], header.frames_per_block):
        block = sent[:, first : first + header.frames_per_block]
        data = channel.send(to_payload(header, block))
        if data is None:
            arrived.append(concealment(header, block.shape[1]))
        else:
            arrived.append(from_payload(header, data, block.shape[1], strict=False))
    indices = torch.from_numpy(np.concatenate(arrived, axis=1))
    return Tokens(indices, header, channel.hit_blocks, channel.lost_blocks)
