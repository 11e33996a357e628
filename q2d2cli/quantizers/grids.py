"""The two-dimensional grids (`geometry`) as tensors, and the nearest point in closed form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from q2d2cli.quantizers import geometry
from q2d2cli.quantizers.spec import QuantizerSpec

Candidates = list[tuple[Tensor, Tensor, Tensor]]
"""`(index, x, y)` of points, lowest index first."""


def squared_distance(x: Tensor, y: Tensor, px: Tensor, py: Tensor) -> Tensor:
    """Squared distance, written once so that search and closed form round alike."""
    dx, dy = x - px, y - py
    return dx * dx + dy * dy


def exact(z: Tensor) -> Tensor:
    """Coordinates in float32 at least: in half precision other points would be nearest."""
    return z if z.dtype == torch.float64 else z.float()


class Grid(ABC):
    """A finite set of points in the plane.

    Args:
        levels: points per axis, `(x, y)`.
        hexagonal_offset: shift of a hexagonal grid's rows; others have none.

    Attributes:
        levels: points per axis, `(x, y)`.
        points: `(G, 2)` float32 coordinates; row `i` is the point of index `i`.
    """

    kind: ClassVar[str]

    def __init__(self, levels: tuple[int, int], *, hexagonal_offset: float = geometry.HEXAGONAL_OFFSET) -> None:
        self.levels, self.offset = levels, hexagonal_offset
        self.points = torch.from_numpy(geometry.points(self.kind, *levels, hexagonal_offset)).float()

    def __len__(self) -> int:
        return len(self.points)

    @abstractmethod
    def _candidates(self, x: Tensor, y: Tensor) -> Candidates:
        """The points that can be nearest."""

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest point (paper equation 3), the lowest index on a tie.

        Looks at the at most eight points around `z` instead of at all of them; agrees with
        `nearest_by_search` wherever distances can be told apart at all.

        Args:
            z: `(..., 2)` coordinates; half precision counts as the float32 numbers it stands for.

        Returns:
            `(...)` int64 indices in `[0, G)`.
        """
        x, y = exact(z).unbind(-1)
        candidates = self._candidates(x, y)
        best, px, py = candidates[0]
        least = squared_distance(x, y, px, py)
        for index, px, py in candidates[1:]:
            distance = squared_distance(x, y, px, py)
            closer = distance < least
            best = torch.where(closer, index, best)
            least = torch.where(closer, distance, least)
        return best

    def nearest_by_search(self, z: Tensor) -> Tensor:
        """The definition of `nearest`: argmin over all points. `(..., 2)` to `(...)` int64."""
        z = exact(z)
        points = self.points.to(z)
        distance = squared_distance(z[..., 0, None], z[..., 1, None], points[:, 0], points[:, 1])
        return distance.argmin(dim=-1)


def below_and_above(value: Tensor, start: float, count: int) -> tuple[Tensor, Tensor]:
    """Positions (int64) of the neighbours of `value` in `start, start + 1, ...` (`count` >= 2 values)."""
    # NaN must not become an index out of range: a diverging training step ends up here.
    low = (value - start).floor().clamp(0, count - 2).nan_to_num(0.0).long()
    return low, low + 1


def corners(x: Tensor, y: Tensor, columns: int, rows: int, first: int = 0) -> Candidates:
    """The four points around `(x, y)` of an x-major lattice about the origin whose indices begin at `first`."""
    left, bottom = geometry.start(columns), geometry.start(rows)
    return [
        (first + ix * rows + iy, ix + left, iy + bottom)
        for ix in below_and_above(x, left, columns)
        for iy in below_and_above(y, bottom, rows)
    ]


class RectangularGrid(Grid):
    """`l_x * l_y` points, x-major (paper algorithm 2)."""

    kind = "rectangular"

    def _candidates(self, x: Tensor, y: Tensor) -> Candidates:
        return corners(x, y, *self.levels)


class RhombicGrid(Grid):
    """The rectangular grid, then its `(l_x - 1) * (l_y - 1)` cell centres, x-major (as in the authors' code)."""

    kind = "rhombic"

    def _candidates(self, x: Tensor, y: Tensor) -> Candidates:
        outer, centres = geometry.lattices(self.kind, *self.levels)
        return corners(x, y, *outer) + corners(x, y, *centres, first=outer[0] * outer[1])


class HexagonalGrid(Grid):
    """`l` rows of `l` points; even rows shifted by +1/4, odd rows by -1/4 (paper algorithm 1).

    The second level of the pair counts for nothing. Indices run row by row, x inner.
    """

    kind = "hexagonal"

    def _candidates(self, x: Tensor, y: Tensor) -> Candidates:
        level = self.levels[0]
        start = geometry.start(level)
        below, above = below_and_above(y, start, level)
        neighbours = []
        # Rows take turns in reaching out: beyond a row's end the rows next to it may be nearer.
        for row in ((below - 1).clamp(min=0), below, above):
            shift = torch.where(row % 2 == 1, -self.offset, self.offset).to(x)
            low, high = below_and_above(x - shift, start, level)
            for column in (low, high):
                neighbours.append((row * level + column, column + start + shift, row + start))
        return neighbours


GRIDS: dict[str, type[Grid]] = {grid.kind: grid for grid in (RectangularGrid, RhombicGrid, HexagonalGrid)}


def make_grids(spec: QuantizerSpec, hexagonal_offset: float = geometry.HEXAGONAL_OFFSET) -> list[Grid]:
    """One grid for each pair of `spec`."""
    return [GRIDS[spec.kind](pair, hexagonal_offset=hexagonal_offset) for pair in spec.pairs]
