"""The points of the two-dimensional grids, in the authors' order: how many and where. Imports no torch.

All grids have unit spacing: an axis with `l` levels runs from `-(l - 1)/2` to `(l - 1)/2`.
"""

from __future__ import annotations

import numpy as np

HEXAGONAL_OFFSET = 0.25
"""How far a hexagonal grid's even rows are shifted to the right, odd ones to the left (paper algorithm 1)."""


def start(level: int) -> float:
    """Where an axis with so many levels begins."""
    return -(level - 1) / 2


def axis(level: int) -> np.ndarray:
    """`linspace(-e, e, level)` with `e = (level - 1)/2`, `(level,)` float64 and exact."""
    return np.arange(level) + start(level)


def lattices(kind: str, a: int, b: int) -> list[tuple[int, int]]:
    """Columns and rows of the lattices, each centred on the origin, that a grid consists of, in index order.

    - `rectangular`: `a * b` points (paper algorithm 2).
    - `rhombic`: the rectangle, then its `(a - 1) * (b - 1)` cell centres. The paper's algorithm 3 adds `a * b`
      midpoints; this follows the authors' code.
    - `hexagonal`: `a` rows of `a` points, rows one unit apart. The first level of the pair serves both axes, as in
      the authors' code.
    """
    if kind == "rectangular":
        return [(a, b)]
    if kind == "rhombic":
        return [(a, b), (a - 1, b - 1)]
    return [(a, a)]


def count(kind: str, a: int, b: int) -> int:
    """Points of a grid with levels `(a, b)`."""
    return sum(columns * rows for columns, rows in lattices(kind, a, b))


def points(kind: str, a: int, b: int, hexagonal_offset: float = HEXAGONAL_OFFSET) -> np.ndarray:
    """`(count, 2)` float64 coordinates `(x, y)`; row `i` is the point of index `i`.

    Lattices run x-major (y inner); the hexagonal grid runs row by row (x inner), its rows shifted in turns.
    """
    if kind == "hexagonal":
        y, x = np.divmod(np.arange(a * a), a)
        shift = np.where(y % 2 == 1, -hexagonal_offset, hexagonal_offset)
        return np.stack([axis(a)[x] + shift, axis(a)[y]], axis=1)
    parts = []
    for columns, rows in lattices(kind, a, b):
        x, y = np.divmod(np.arange(columns * rows), rows)
        parts.append(np.stack([axis(columns)[x], axis(rows)[y]], axis=1))
    return np.concatenate(parts)
