"""The grids and lattices of `geometry` as tensors, and the nearest point in closed form."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from q2d2cli.quantizers import geometry
from q2d2cli.quantizers.spec import QuantizerSpec

Candidates = list[tuple[Tensor, Sequence[Tensor]]]
"""Index and coordinates of points, lowest index first."""


def squared_distance(z: Sequence[Tensor], point: Sequence[Tensor]) -> Tensor:
    """Squared distance, written once so that search and closed form round alike."""
    differences = [a - b for a, b in zip(z, point, strict=True)]
    total = differences[0] * differences[0]
    for difference in differences[1:]:
        total = total + difference * difference
    return total


def exact(z: Tensor) -> Tensor:
    """Coordinates in float32 at least: in half precision other points would be nearest."""
    return z if z.dtype == torch.float64 else z.float()


class Grid(ABC):
    """A finite set of points in `n` dimensions.

    Args:
        levels: points per axis, `n` of them.
        hexagonal_offset: shift of a hexagonal grid's rows; others have none.

    Attributes:
        levels: points per axis.
        points: `(G, n)` float32 coordinates; row `i` is the point of index `i`.
    """

    kind: ClassVar[str]

    def __init__(self, levels: tuple[int, ...], *, hexagonal_offset: float = geometry.HEXAGONAL_OFFSET) -> None:
        self.levels, self.offset = levels, hexagonal_offset
        self.points = torch.from_numpy(geometry.points(self.kind, *levels, hexagonal_offset=hexagonal_offset)).float()

    def __len__(self) -> int:
        return len(self.points)

    @abstractmethod
    def _candidates(self, z: Sequence[Tensor]) -> Candidates:
        """The points that can be nearest to those with the coordinates `z`."""

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest point (paper equation 3), the lowest index on a tie.

        Looks at the at most eight points around `z` instead of at all of them; agrees with
        `nearest_by_search` wherever distances can be told apart at all.

        Args:
            z: `(..., n)` coordinates; half precision counts as the float32 numbers it stands for.

        Returns:
            `(...)` int64 indices in `[0, G)`.
        """
        coordinates = exact(z).unbind(-1)
        candidates = self._candidates(coordinates)
        best, point = candidates[0]
        least = squared_distance(coordinates, point)
        for index, point in candidates[1:]:
            distance = squared_distance(coordinates, point)
            closer = distance < least
            best = torch.where(closer, index, best)
            least = torch.where(closer, distance, least)
        return best

    def nearest_by_search(self, z: Tensor) -> Tensor:
        """The definition of `nearest`: argmin over all points. `(..., n)` to `(...)` int64."""
        z = exact(z)
        distance = squared_distance(z.unsqueeze(-2).unbind(-1), self.points.to(z).unbind(-1))
        return distance.argmin(dim=-1)


def below_and_above(value: Tensor, start: float, count: int) -> tuple[Tensor, Tensor]:
    """Positions (int64) of the neighbours of `value` in `start, start + 1, ...` (`count` >= 2 values)."""
    # NaN must not become an index out of range: a diverging training step ends up here.
    low = (value - start).floor().clamp(0, count - 2).nan_to_num(0.0).long()
    return low, low + 1


def corners(x: Tensor, y: Tensor, columns: int, rows: int, first: int = 0) -> Candidates:
    """The four points around `(x, y)` of an x-major box about the origin whose indices begin at `first`."""
    left, bottom = geometry.start(columns), geometry.start(rows)
    return [
        (first + ix * rows + iy, (ix + left, iy + bottom))
        for ix in below_and_above(x, left, columns)
        for iy in below_and_above(y, bottom, rows)
    ]


class RectangularGrid(Grid):
    """`l_x * l_y` points, x-major (paper algorithm 2)."""

    kind = "rectangular"

    def _candidates(self, z: Sequence[Tensor]) -> Candidates:
        x, y = z
        columns, rows = self.levels
        return corners(x, y, columns, rows)


class RhombicGrid(Grid):
    """The rectangular grid, then its `(l_x - 1) * (l_y - 1)` cell centres, x-major (as in the authors' code)."""

    kind = "rhombic"

    def _candidates(self, z: Sequence[Tensor]) -> Candidates:
        x, y = z
        (columns, rows), _ = geometry.boxes(self.kind, *self.levels)
        return corners(x, y, columns, rows) + corners(x, y, columns - 1, rows - 1, first=columns * rows)


class HexagonalGrid(Grid):
    """`l` rows of `l` points; even rows shifted by +1/4, odd rows by -1/4 (paper algorithm 1).

    The second level of the pair counts for nothing. Indices run row by row, x inner.
    """

    kind = "hexagonal"

    def _candidates(self, z: Sequence[Tensor]) -> Candidates:
        x, y = z
        level = self.levels[0]
        start = geometry.start(level)
        below, above = below_and_above(y, start, level)
        neighbours: Candidates = []
        # Rows take turns in reaching out: beyond a row's end the rows next to it may be nearer.
        for row in ((below - 1).clamp(min=0), below, above):
            shift = torch.where(row % 2 == 1, -self.offset, self.offset).to(x)
            low, high = below_and_above(x - shift, start, level)
            for column in (low, high):
                neighbours.append((row * level + column, (column + start + shift, row + start)))
        return neighbours


class Lattice(Grid):
    """The points of a box and of a second one between them; what can be nearest is one point of each."""

    def _candidates(self, z: Sequence[Tensor]) -> Candidates:
        boxes = geometry.boxes(self.kind, *self.levels)
        return [nearest_of_box(z, boxes[0]), nearest_of_box(z, boxes[1], first=math.prod(boxes[0]))]


class BodyCentredGrid(Lattice):
    """A three-dimensional box of `l_x * l_y * l_z` points and its cell centres."""

    kind = "body-centred"


class D4Lattice(Lattice):
    """The lattice D4 as the Hurwitz integers: a four-dimensional box and its cell centres."""

    kind = "d4"


class E8Lattice(Lattice):
    """The lattice E8: of an eight-dimensional box and of its cell centres, every other point."""

    kind = "e8"

    def _candidates(self, z: Sequence[Tensor]) -> Candidates:
        parity, boxes = geometry.even(*self.levels), geometry.boxes(self.kind, *self.levels)
        first = geometry.of_parity(parity, *boxes[0])
        return [nearest_of_parity(z, boxes[0], parity), nearest_of_parity(z, boxes[1], parity, first)]


def nearest_of_box(z: Sequence[Tensor], box: tuple[int, ...], first: int = 0) -> tuple[Tensor, Sequence[Tensor]]:
    """Index and coordinates of the nearest point of a whole box, whose indices begin at `first`."""
    index, point = torch.zeros_like(z[0], dtype=torch.int64), list[Tensor]()
    for value, level in zip(z, box, strict=True):
        low, lean = position_below(value, level)
        position = low + (lean < 0)
        index = index * level + position
        point.append(position + geometry.start(level))
    return first + index, point


def nearest_of_parity(
    z: Sequence[Tensor], box: tuple[int, ...], parity: int, first: int = 0
) -> tuple[Tensor, Sequence[Tensor]]:
    """The same among the points whose positions have an even (`parity` 0) or odd (1) sum.

    Rounds every coordinate, and if the sum is wrong one of them the other way, where that costs least
    (Conway and Sloane 1982, Fast quantizing and decoding algorithms for lattice quantizers).
    """
    lows, leans = zip(*(position_below(value, level) for value, level in zip(z, box, strict=True)), strict=True)
    low, lean = torch.stack(lows, -1), torch.stack(leans, -1)
    position = low + (lean < 0)
    # Next best is the other neighbour; of a value on a point both are as far, and the lower counts.
    other = torch.where((lean == 1) & (low > 0), low - 1, 2 * low + 1 - position)
    wrong = position.sum(-1, keepdim=True) % 2 != parity
    cheapest = lean.abs() == lean.abs().amin(-1, keepdim=True)
    # The lowest index on a tie: the first coordinate that goes down, and if none does the last that goes up.
    axes = torch.arange(len(box), device=low.device)
    down = torch.where(cheapest & (other < position), axes, len(box)).amin(-1, keepdim=True)
    up = torch.where(cheapest, axes, -1).amax(-1, keepdim=True).clamp(min=0)
    turned = wrong & (axes == torch.where(down < len(box), down, up))
    position = torch.where(turned, other, position)

    index, left = torch.full_like(position[..., 0], first), torch.full_like(position[..., 0], parity)
    for axis, at in enumerate(position.unbind(-1)):
        # Points before this one that agree with it up to this axis: even and odd positions below, times the ways on.
        even, odd = (geometry.of_parity(rest, *box[axis + 1 :]) for rest in (0, 1))
        below_even, below_odd = (at + 1) // 2, at // 2
        index = index + torch.where(left == 0, below_even * even + below_odd * odd, below_even * odd + below_odd * even)
        left = (left + at) % 2
    return index, [at + geometry.start(level) for at, level in zip(position.unbind(-1), box, strict=True)]


def position_below(value: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """The lower of the two positions (int64) around a value on an axis, and how much farther the upper one is.

    The difference of the squared distances, below 0 where the upper position is nearer.
    """
    start = geometry.start(level)
    low, high = below_and_above(value, start, level)
    return low, ((high + start) - value) - (value - (low + start))


GRIDS: dict[str, type[Grid]] = {
    grid.kind: grid for grid in (RectangularGrid, RhombicGrid, HexagonalGrid, BodyCentredGrid, D4Lattice, E8Lattice)
}


def make_grids(spec: QuantizerSpec, hexagonal_offset: float = geometry.HEXAGONAL_OFFSET) -> list[Grid]:
    """One grid for each pair of `spec`, or one lattice for each of its groups of dimensions."""
    return [GRIDS[spec.kind](group, hexagonal_offset=hexagonal_offset) for group in spec.groups]
