"""The points of grids (in the authors' order) and lattices: how many and where. Imports no torch.

All have unit spacing: an axis with `l` levels runs from `-(l - 1)/2` to `(l - 1)/2`.
"""

from __future__ import annotations

import math

import numpy as np

HEXAGONAL_OFFSET = 0.25
"""How far a hexagonal grid's even rows are shifted to the right, odd ones to the left (paper algorithm 1)."""

DIMENSIONS = {"rectangular": 2, "rhombic": 2, "hexagonal": 2, "body-centred": 3, "d4": 4, "e8": 8}
"""How many dimensions are snapped together to the points of each kind."""


def start(level: int) -> float:
    """Where an axis with so many levels begins."""
    return -(level - 1) / 2


def axis(level: int) -> np.ndarray:
    """`linspace(-e, e, level)` with `e = (level - 1)/2`, `(level,)` float64 and exact."""
    return np.arange(level) + start(level)


def boxes(kind: str, *levels: int) -> list[tuple[int, ...]]:
    """Points per axis of the boxes, each centred on the origin, that the points are taken from, in index order.

    - `rectangular`: `a * b` points (paper algorithm 2).
    - `rhombic`: the rectangle, then its `(a - 1) * (b - 1)` cell centres. The paper's algorithm 3 adds `a * b`
      midpoints; this follows the authors' code.
    - `hexagonal`: `a` rows of `a` points, rows one unit apart. The first level of the pair serves both axes, as in
      the authors' code.
    - `body-centred` and `d4`: the box, then its cell centres, in three and four dimensions. In four these are the
      Hurwitz integers, a D4 lattice (Conway and Sloane, Sphere Packings, Lattices and Groups, chapter 2).
    - `e8`: the same in eight dimensions, but only every other point of each box, see `even`.
    """
    if kind == "rectangular":
        return [levels]
    if kind == "hexagonal":
        return [(levels[0], levels[0])]
    return [levels, tuple(level - 1 for level in levels)]


def even(*levels: int) -> int:
    """The parity, 0 or 1, of the sum of an E8 point's positions (from 0 on) in its box.

    E8 is D8 and D8 shifted by 1/2 in every dimension; in D8 the sum of the coordinates is even.
    """
    return sum(level // 2 for level in levels) % 2


def of_parity(parity: int, *levels: int) -> int:
    """How many points of a box have positions whose sum is even (`parity` 0) or odd (1)."""
    size = math.prod(levels)
    # Points pair off along an even axis; without one, the last corner is left over, and its sum is even.
    return (size + 1 - parity) // 2


def count(kind: str, *levels: int) -> int:
    """Points with these levels, as many as the kind has dimensions."""
    if kind == "e8":
        return sum(of_parity(even(*levels), *box) for box in boxes(kind, *levels))
    return sum(math.prod(box) for box in boxes(kind, *levels))


def points(kind: str, *levels: int, hexagonal_offset: float = HEXAGONAL_OFFSET) -> np.ndarray:
    """`(count, dimensions)` float64 coordinates; row `i` is the point of index `i`.

    Boxes run with the first axis outermost; the hexagonal grid runs row by row (x inner), its rows shifted in turns.
    """
    if kind == "hexagonal":
        a = levels[0]
        y, x = np.divmod(np.arange(a * a), a)
        shift = np.where(y % 2 == 1, -hexagonal_offset, hexagonal_offset)
        return np.stack([axis(a)[x] + shift, axis(a)[y]], axis=1)
    parts = []
    for box in boxes(kind, *levels):
        positions = np.indices(box).reshape(len(box), -1).T
        if kind == "e8":
            positions = positions[positions.sum(axis=1) % 2 == even(*levels)]
        parts.append(positions + [start(level) for level in box])
    return np.concatenate(parts)
