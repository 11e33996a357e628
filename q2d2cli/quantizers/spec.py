"""What a quantizer is, in numbers: kind, levels, entries per index, bits per frame. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from q2d2cli.quantizers.geometry import DIMENSIONS, count

GRID_KINDS = ("rectangular", "rhombic", "hexagonal")
LATTICE_KINDS = ("body-centred", "d4", "e8")
KINDS = (*GRID_KINDS, "fsq", "vq", "rvq", *LATTICE_KINDS)
"""Quantizer kinds in the order of their codes in the file format."""

BOUND_MARGIN = 1e-3
"""The authors' code stretches the bounded value by this much; the paper does not."""
MAX_GRID_LEVEL = 4095
"""Highest level of a dimension of a grid; keeps every grid below 2**25 points."""
MAX_LEVEL = 65535
MAX_LATTICE_POINTS = 2**20
"""Most points of a lattice: they stand in a table."""


@dataclass(frozen=True)
class QuantizerSpec:
    """Kind and level list of a quantizer. A frame is coded as one index for each of `sizes`.

    For the two-dimensional grids (paper section 3.1), dimensions `2j` and `2j + 1` form pair `j`,
    whose points `geometry` counts. The paper's pseudo-code gives the rhombic grid `a * b` midpoints;
    the bit rates it prints only come out with the cell centres that lie inside the rectangle.

    The lattices snap three (`body-centred`), four (`d4`) or eight (`e8`) dimensions together, as many levels each.

    The baselines: `fsq` has one index for each dimension, `vq` one codebook of `levels[0]`
    entries, `rvq` one codebook of the same size for each stage.

    Raises:
        ValueError: on an unknown kind, no levels, a level out of range, a number of levels that is no multiple
            of the dimensions snapped together, an even level in a rhombic grid or a lattice, a lattice with
            more than 2**20 points, several levels for `vq`, or different ones for `rvq`. The message names
            the value.

    Examples:
        >>> spec = QuantizerSpec("rhombic", (9, 9, 7, 7, 7, 7))
        >>> spec.sizes, spec.codebook_size
        ((145, 85, 85), 1047625)
        >>> round(spec.bits_per_frame, 4), round(spec.bit_rate(sample_rate=24_000, hop=144))
        (19.9987, 3333)
    """

    kind: str
    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        if self.kind not in KINDS:
            raise ValueError(f"unknown quantizer {self.kind!r}: expected one of {', '.join(KINDS)}")
        if not self.levels:
            raise ValueError("0 levels given: a quantizer needs at least one")
        if len(self.levels) % self.group_size:
            raise ValueError(
                f"{len(self.levels)} levels given: {self.kind} snaps {self.group_size} dimensions together, "
                f"give a multiple of {self.group_size}"
            )
        highest = MAX_GRID_LEVEL if self.snaps else MAX_LEVEL
        for level in self.levels:
            if not 2 <= level <= highest:
                raise ValueError(f"level {level} is out of range: levels must be between 2 and {highest}")
            if self.kind == "rhombic" and level % 2 == 0:
                raise ValueError(f"level {level} is even: a rhombic grid needs odd levels")
            if self.is_lattice and level % 2 == 0:
                raise ValueError(f"level {level} is even: a lattice needs odd levels")
        if self.is_lattice and max(self.sizes) > MAX_LATTICE_POINTS:
            raise ValueError(f"{max(self.sizes)} points in a lattice are out of range: at most {MAX_LATTICE_POINTS}")
        if self.kind == "vq" and len(self.levels) > 1:
            raise ValueError(f"{len(self.levels)} levels given: vq has one codebook (use rvq for several)")
        if self.kind == "rvq" and len(set(self.levels)) > 1:
            raise ValueError(f"levels {self.levels} differ: all codebooks of rvq have the same size")

    @property
    def is_grid(self) -> bool:
        """Whether this is a two-dimensional quantizer."""
        return self.kind in GRID_KINDS

    @property
    def is_lattice(self) -> bool:
        """Whether more than two dimensions are snapped together."""
        return self.kind in LATTICE_KINDS

    @property
    def snaps(self) -> bool:
        """Whether indices are points of grids or lattices: not a baseline."""
        return self.is_grid or self.is_lattice

    @property
    def group_size(self) -> int:
        """Dimensions that share an index: those of the grid or lattice, 1 for the baselines."""
        return DIMENSIONS.get(self.kind, 1)

    @property
    def dim(self) -> int:
        """Number of levels; for grids, lattices and FSQ that of quantized dimensions `d`."""
        return len(self.levels)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The levels of each index: those of each pair of a grid, three, four or eight of a lattice."""
        size = self.group_size
        return tuple(self.levels[first : first + size] for first in range(0, self.dim, size))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many values each of a frame's indices has: points `G_j` of each grid or lattice, or codebook sizes."""
        if self.snaps:
            return tuple(count(self.kind, *group) for group in self.groups)
        return self.levels

    @property
    def num_indices(self) -> int:
        """Indices per frame: pairs `P = d / 2` for grids, `d / n` for lattices in `n` dimensions, dimensions for FSQ,
        codebooks for VQ and RVQ."""
        return len(self.sizes)

    @cached_property
    def codebook_size(self) -> int:
        """Size of the (implicit) codebook, the product of the indices' sizes (paper equation 5)."""
        return math.prod(self.sizes)

    @cached_property
    def field_bits(self) -> tuple[int, ...]:
        """Bits that hold each index on its own, `ceil(log2 G_j)`."""
        return tuple((size - 1).bit_length() for size in self.sizes)

    @property
    def bits_per_frame(self) -> float:
        """`log2` of the codebook size."""
        return math.log2(self.codebook_size)

    def bit_rate(self, sample_rate: int, hop: int) -> float:
        """Payload bits per second at one frame every `hop` samples."""
        return self.bits_per_frame * sample_rate / hop
