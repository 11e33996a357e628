"""Prints what a flipped bit does to a grid point, the table in docs/format.md: `python tests/labelling_table.py`."""

from __future__ import annotations

import numpy as np

from q2d2cli.container.labelling import coordinates, grid_labelling

GRIDS = [(kind, level) for kind in ("rhombic", "rectangular", "hexagonal") for level in (7, 9, 11)]


def displacement(places: np.ndarray, codes: np.ndarray, points: np.ndarray) -> float:
    """Mean squared distance, grid units, between a point and what its code decodes to with one bit flipped.

    Over all points and all bits of the field alike.
    """
    width = (len(points) - 1).bit_length()
    moved = points[codes[:, None] ^ (1 << np.arange(width))]
    # Coordinates are in quarters of a unit.
    return float(((places[moved] - places[:, None]) ** 2).sum(axis=-1).mean()) / 16


def rows() -> list[tuple[str, int, int, float, float]]:
    """Grid, points, bits of the field; squared distance with the plain index, and with the labelling."""
    result = []
    for kind, level in GRIDS:
        places = coordinates(kind, (level, level))
        labelling = grid_labelling(kind, (level, level))
        size = len(places)
        plain = displacement(places, np.arange(size), np.minimum(np.arange(2**labelling.width), size - 1))
        ours = displacement(places, labelling.codes, labelling.points)
        result.append((f"{kind} {level},{level}", size, labelling.width, plain, ours))
    return result


def table() -> str:
    """The rows in Markdown."""
    return "\n".join(
        f"| {name} | {size} | {width} | {plain:.2f} | {ours:.2f} |" for name, size, width, plain, ours in rows()
    )


if __name__ == "__main__":
    print(table())
