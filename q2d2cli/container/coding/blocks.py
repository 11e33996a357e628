"""Many blocks of pair indices to bytes and back at once, each on its own: blocks are the rows of the context model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from q2d2cli.container.coding import ranges
from q2d2cli.container.coding.context import ContextModel, sides

BATCH = 128
"""Rows that are coded side by side; more are no faster."""


@dataclass(frozen=True)
class BlockCoder:
    """Codes blocks with a context model."""

    model: ContextModel

    def encode(self, blocks: Sequence[np.ndarray]) -> list[bytes]:
        """Pair indices to entropy-coded payloads.

        In a payload the channels take turns after each pair index.

        Args:
            blocks: `(channels, frames, pairs)` integers in range, each at least one frame, all of as many channels.

        Returns:
            The payload of each.
        """
        coded = [b""] * len(blocks)
        for part in batches([block.shape[1] for block in blocks], blocks[0].shape[0] if blocks else 1):
            longest = blocks[part[0]].shape[1]
            lengths = np.array([blocks[i].shape[1] for i in part])
            channels, _, pairs = blocks[part[0]].shape
            padded = np.zeros((len(part), channels, longest, pairs), np.int64)
            for row, i in zip(padded, part, strict=True):
                row[:, : blocks[i].shape[1]] = blocks[i]
            found = self.model.intervals(padded.reshape(-1, longest, pairs), np.repeat(lengths, channels))
            found = found.reshape(len(part), channels, longest, pairs, 3).transpose(0, 2, 3, 1, 4)
            for row, i in zip(found, part, strict=True):
                # Flat lists: a list for each symbol would set off Python's garbage collector, slow where torch is.
                columns = row[: blocks[i].shape[1]].reshape(-1, 3).T.tolist()
                coded[i] = ranges.encode(zip(*columns, strict=True))
        return coded

    def decode(self, payloads: Sequence[bytes], frames: Sequence[int], channels: int) -> list[np.ndarray]:
        """Inverse of `encode`.

        Any bytes decode to indices in range.

        Args:
            payloads: what `encode` gave.
            frames: of each.
            channels: of all.

        Returns:
            `(channels, frames, pairs)` int64 for each.

        Raises:
            FormatError: if a payload is longer than it should be.
        """
        blocks: list[np.ndarray] = [np.empty(0)] * len(payloads)
        for part in batches(frames, channels):
            lengths = np.array([frames[i] for i in part])
            coder = ranges.Decoder([payloads[i] for i in part])
            predictor = self.model.begin(len(part) * channels)
            found = np.zeros((lengths[0], len(self.model.sizes), len(part), channels), np.int64)
            for rows, indices in zip(sides(lengths), found, strict=True):
                predictor.keep(rows * channels)
                for pair, symbols in enumerate(indices[:, :rows]):
                    counts = predictor.counts(pair)
                    for channel in range(channels):
                        symbols[:, channel] = coder.decode(counts[channel::channels])
                    predictor.take(pair, symbols.reshape(-1))
            for row, i in enumerate(part):
                coder.check(row, payloads[i])
                blocks[i] = np.ascontiguousarray(found[: frames[i], :, row].transpose(2, 0, 1))
        return blocks


def batches(frames: Sequence[int], channels: int) -> list[list[int]]:
    """Numbers of the blocks that are coded side by side, longest first."""
    order = sorted(range(len(frames)), key=lambda i: -frames[i])
    size = max(1, BATCH // channels)
    return [order[i : i + size] for i in range(0, len(order), size)]
