"""Which bits stand for which grid point in a robust payload (docs/format.md, "Labelling"). Imports no torch.

A flipped bit should move a point as little as possible. Codes are first dealt out by cutting the
grid in halves, then swapped as long as that lowers the sum of squared distances over all single
bit flips. All of it is integer arithmetic with fixed tie rules, so that every implementation
arrives at the same table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from q2d2cli.quantizers import geometry
from q2d2cli.quantizers.spec import QuantizerSpec

MAX_REFINED_BITS = 8
"""Wider fields keep the codes of the halving: swaps would take seconds there."""


@dataclass(frozen=True, eq=False)
class Labelling:
    """Codes of one pair's points, and the point of every code.

    Attributes:
        width: bits of the pair's field.
        codes: `(points,)` int64, the code that is written for each index; read-only.
        points: `(2**width,)` int64, the index that each code decodes to; read-only.
    """

    width: int
    codes: np.ndarray
    points: np.ndarray


@lru_cache(maxsize=64)
def labellings(spec: QuantizerSpec) -> tuple[Labelling, ...]:
    """One labelling for each pair (FSQ: dimension; VQ, residual VQ: codebook) of `spec`."""
    if spec.kind in ("vq", "rvq"):
        return tuple(plain_labelling(size) for size in spec.sizes)
    return tuple(grid_labelling(*shape) for shape in shapes(spec))


def origins(spec: QuantizerSpec) -> np.ndarray:
    """`(pairs,)` int64: the index nearest the origin of each pair, the lowest on a tie; 0 for codebooks."""
    if spec.kind in ("vq", "rvq"):
        return np.zeros(spec.num_indices, np.int64)
    return np.array([(coordinates(*shape) ** 2).sum(axis=1).argmin() for shape in shapes(spec)], np.int64)


def shapes(spec: QuantizerSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Kind and levels of what each index stands for; a dimension of FSQ has one level and is a row of points."""
    if spec.kind == "fsq":
        return [("fsq", (level,)) for level in spec.levels]
    return [(spec.kind, levels) for levels in spec.groups]


def coordinates(kind: str, levels: tuple[int, ...]) -> np.ndarray:
    """`(points, n)` int64 coordinates of points in quarters of a grid unit, in the order of their indices."""
    if kind == "fsq":
        (level,) = levels
        return np.stack([4 * (np.arange(level) - level // 2), np.zeros(level, np.int64)], axis=1)
    return np.rint(4 * geometry.points(kind, *levels)).astype(np.int64)


def plain_labelling(size: int) -> Labelling:
    """The index itself; a code that is no index decodes to itself without its highest bit."""
    width = (size - 1).bit_length()
    points = np.arange(2**width)
    points[size:] -= 2 ** (width - 1)
    return frozen(width, np.arange(size), points)


@lru_cache(maxsize=64)
def grid_labelling(kind: str, levels: tuple[int, ...]) -> Labelling:
    """The labelling of one grid or lattice."""
    places = coordinates(kind, levels)
    width = (len(places) - 1).bit_length()
    codes, points = halve(places, width)
    if width <= MAX_REFINED_BITS:
        codes, points = refine(places, width, codes, points)
    return frozen(width, codes, points)


def frozen(width: int, codes: np.ndarray, points: np.ndarray) -> Labelling:
    """A labelling whose arrays cannot be written to: it is shared by everyone who asks for it."""
    codes.flags.writeable = points.flags.writeable = False
    return Labelling(width, codes, points)


def halve(places: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes by cutting the points in halves across the longest side, the highest bit first.

    A part that is down to one point takes all codes that are left to it and writes the lowest.

    Args:
        places: `(points, n)` coordinates.
        width: bits of a code, enough for all points.

    Returns:
        `(points,)` codes and `(2**width,)` points.
    """
    codes, points = np.empty(len(places), np.int64), np.empty(2**width, np.int64)
    parts = [(np.arange(len(places)), 0, width)]
    while parts:
        part, first, bits = parts.pop()
        if len(part) == 1:
            codes[part] = first
            points[first : first + 2**bits] = part
            continue
        here = places[part]
        longest = int(np.ptp(here, axis=0).argmax())
        # The last key counts most: the longest side, then the others from the first on.
        order = part[np.lexsort((*np.delete(here, longest, axis=1).T[::-1], here[:, longest]))]
        middle = (len(part) + 1) // 2
        parts.append((order[:middle], first, bits - 1))
        parts.append((order[middle:], first + 2 ** (bits - 1), bits - 1))
    return codes, points


def refine(places: np.ndarray, width: int, codes: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Swap the entries of codes while that lowers the cost, then place the codes that are never written.

    The cost is the sum of squared distances between the points of two codes that differ in one
    bit, once for each of the two that is written.

    Args:
        places: `(points, n)` coordinates.
        width: bits of a code.
        codes: `(points,)`, the code written for each point.
        points: `(2**width,)`, the point of each code.

    Returns:
        Codes and points like those that came in.
    """
    squared = ((places[:, None] - places[None]) ** 2).sum(axis=-1)
    entry = points.copy()
    written = np.zeros(2**width, np.int64)
    written[codes] = 1
    neighbours = np.arange(2**width)[:, None] ^ 1 << np.arange(width)
    swapped = True
    while swapped:
        swapped = False
        for code in range(2**width):
            near = neighbours[code]
            here = ((written[:, None] + written[neighbours]) * squared[entry[:, None], entry[neighbours]]).sum(axis=1)
            moved = ((written[code] + written[neighbours]) * squared[entry[code], entry[neighbours]]).sum(axis=1)
            brought = ((written[:, None] + written[near]) * squared[entry[:, None], entry[near]]).sum(axis=1)
            change = moved + brought - here - here[code]
            # The edge between two neighbours that trade places stays as it is.
            change[near] += 2 * (written[code] + written[near]) * squared[entry[code], entry[near]]
            change[code] = 0
            other = int(change.argmin())
            if change[other] < 0:
                pair, turned = [code, other], [other, code]
                entry[pair], written[pair] = entry[turned], written[turned]
                swapped = True
    result = entry.copy()
    for free in np.flatnonzero(written == 0):
        around = entry[neighbours[free][written[neighbours[free]] == 1]]
        if len(around):
            result[free] = squared[:, around].sum(axis=1).argmin()
    moved_codes = np.empty_like(codes)
    moved_codes[entry[written == 1]] = np.flatnonzero(written)
    return moved_codes, result
