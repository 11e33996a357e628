"""What a quantizer is, in numbers: kind, levels, points per pair, bits per frame. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

KINDS = ("rectangular", "rhombic", "hexagonal")
"""Grid kinds in the order of their codes in the file format."""

MAX_LEVEL = 4095
"""Highest level of a dimension; keeps every grid below 2**25 points."""


@dataclass(frozen=True)
class QuantizerSpec:
    """Grid kind and level list of a Q2D2 quantizer (paper section 3.1).

    Dimension `2j` and `2j + 1` form pair `j`. The number of points of a pair with levels
    `(a, b)` is `a * b` for a rectangular grid, `a * b + (a - 1) * (b - 1)` for a rhombic one and
    `a * a` for a hexagonal one (which uses the first level of the pair for both axes, as the
    authors' code does). The paper's pseudo-code gives the rhombic grid `a * b` midpoints; the
    bit rates it prints only come out with the cell centres that lie inside the rectangle.

    Raises:
        ValueError: on an unknown kind, an odd or empty number of levels, a level below 2 or
            above `MAX_LEVEL`, or an even level in a rhombic grid. The message names the value.
    """

    kind: str
    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if self.kind not in KINDS:
            raise ValueError(f"unknown grid {self.kind!r}: expected one of {', '.join(KINDS)}")
        if not self.levels or len(self.levels) % 2:
            raise ValueError(
                f"{len(self.levels)} levels given: a two-dimensional quantizer needs an even number of dimensions"
            )
        for level in self.levels:
            if not 2 <= level <= MAX_LEVEL:
                raise ValueError(f"level {level} is out of range: levels must be between 2 and {MAX_LEVEL}")
            if self.kind == "rhombic" and level % 2 == 0:
                raise ValueError(f"level {level} is even: a rhombic grid needs odd levels")

    @property
    def dim(self) -> int:
        """Number of quantized dimensions `d`."""
        return len(self.levels)

    @property
    def num_pairs(self) -> int:
        """Number of feature pairs `P = d / 2`."""
        return self.dim // 2

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Points `G_j` of each pair's grid."""
        pairs = zip(self.levels[::2], self.levels[1::2], strict=True)
        if self.kind == "rectangular":
            return tuple(a * b for a, b in pairs)
        if self.kind == "rhombic":
            return tuple(a * b + (a - 1) * (b - 1) for a, b in pairs)
        return tuple(a * a for a, _ in pairs)

    @cached_property
    def codebook_size(self) -> int:
        """Size of the implicit codebook, the product of the pairs' sizes (paper equation 5)."""
        return math.prod(self.sizes)

    @property
    def bits_per_frame(self) -> float:
        """`log2` of the codebook size."""
        return math.log2(self.codebook_size)

    def bit_rate(self, sample_rate: int, hop: int) -> float:
        """Payload bits per second at one frame every `hop` samples."""
        return self.bits_per_frame * sample_rate / hop
