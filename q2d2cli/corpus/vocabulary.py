"""Ids for language models: the pairs of a frame one after the other, each with its own offset, or one id a frame."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from q2d2cli.errors import UsageError
from q2d2cli.quantizers.base import indices_to_tokens, tokens_to_indices
from q2d2cli.quantizers.spec import QuantizerSpec

KINDS = ("pair", "frame")


@dataclass(frozen=True)
class Vocabulary:
    """How the indices of a quantizer become ids in `[0, size)`.

    Attributes:
        spec: of the quantizer.
        ids: `pair`: `num_indices` ids a frame, pair 0 first, id `offsets[j] + index` for pair `j`;
            `frame`: one id a frame, as `Tokens.tokens`.

    Raises:
        UsageError: if `ids` is neither, or frames are too many for one 64-bit id.
    """

    spec: QuantizerSpec
    ids: str = "pair"

    def __post_init__(self) -> None:
        if self.ids not in KINDS:
            raise UsageError(f"unknown ids {self.ids!r}: choose from {', '.join(KINDS)}")
        if self.ids == "frame" and self.spec.codebook_size > 2**62:
            raise UsageError(f"{self.spec.bits_per_frame:.0f} bits per frame do not fit one id: use --ids pair")

    @property
    def offsets(self) -> tuple[int, ...]:
        """What is added to the index of each pair; `(0,)` for one id a frame."""
        return tuple(accumulate((0, *self.spec.sizes[:-1]))) if self.ids == "pair" else (0,)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Ids at each position of a frame."""
        return self.spec.sizes if self.ids == "pair" else (self.spec.codebook_size,)

    @property
    def size(self) -> int:
        """Number of ids."""
        return sum(self.sizes)

    @property
    def per_frame(self) -> int:
        """Ids of a frame."""
        return len(self.sizes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of uint16, int32 and int64 that holds every id (what all formats and their readers know)."""
        return np.dtype(np.uint16 if self.size <= 2**16 else np.int32 if self.size <= 2**31 else np.int64)

    def to_ids(self, indices: np.ndarray) -> np.ndarray:
        """`(frames, pairs)` indices to `(frames * per_frame,)` ids of `dtype`."""
        if self.ids == "pair":
            return (indices + np.array(self.offsets)).astype(self.dtype).reshape(-1)
        return indices_to_tokens(torch.from_numpy(indices), self.spec).numpy().astype(self.dtype)

    def to_indices(self, ids: np.ndarray) -> np.ndarray:
        """`(frames * per_frame,)` ids to `(frames, pairs)` int64 indices.

        Raises:
            ValueError: if they are no whole frames, or one is not in its range; names the value and its position.
        """
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or len(ids) % self.per_frame:
            raise ValueError(
                f"ids of shape {ids.shape} and type {ids.dtype} are no whole frames: expected a row of integers, "
                f"{self.per_frame} for each frame"
            )
        values = ids.astype(np.int64).reshape(-1, self.per_frame) - np.array(self.offsets)
        wrong = (values < 0) | (values >= np.array(self.sizes))
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            first = self.offsets[at % self.per_frame]
            last = first + self.sizes[at % self.per_frame] - 1
            raise ValueError(f"id {ids[at]} at position {at} is outside the vocabulary: {first} to {last} belong there")
        if self.ids == "pair":
            return values
        return tokens_to_indices(torch.from_numpy(values[:, 0]), self.spec).numpy()

    def describe(self) -> dict[str, Any]:
        """What an output says of its ids, as JSON."""
        undo = "index of pair j = id at position frame * ids_per_frame + j, minus offsets[j]"
        if self.ids == "frame":
            undo = "id = sum over j of index of pair j * product of pair_sizes[:j]"
        return {
            "ids": self.ids,
            "vocabulary_size": self.size,
            "ids_per_frame": self.per_frame,
            "offsets": list(self.offsets),
            "pair_sizes": list(self.spec.sizes),
            "quantizer": self.spec.kind,
            "levels": list(self.spec.levels),
            "dtype": self.dtype.name,
            "undo": undo,
        }

    @classmethod
    def read(cls, description: dict[str, Any]) -> Vocabulary:
        """The vocabulary that `describe` has described."""
        return cls(QuantizerSpec(description["quantizer"], tuple(description["levels"])), description["ids"])
