"""The two-dimensional grids: their points, in the authors' order, and the nearest point in closed form.

All grids have unit spacing: an axis with `l` levels runs from `-(l - 1)/2` to `(l - 1)/2`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from q2d2cli.quantizers.spec import QuantizerSpec


def squared_distance(x: Tensor, y: Tensor, px: Tensor, py: Tensor) -> Tensor:
    """Squared distance, written once so that search and closed form round alike."""
    dx, dy = x - px, y - py
    return dx * dx + dy * dy


class Grid(ABC):
    """A finite set of points in the plane.

    Attributes:
        levels: points per axis, `(x, y)`.
        points: `(G, 2)` float32 coordinates; row `i` is the point of index `i`.
    """

    def __init__(self, levels: tuple[int, int]) -> None:
        self.levels = levels
        self.points = self._points()

    def __len__(self) -> int:
        return len(self.points)

    @abstractmethod
    def _points(self) -> Tensor: ...

    @abstractmethod
    def _candidates(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """`(index, x, y)` of the points that can be nearest, lowest index first."""

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest point (paper equation 3), the lowest index on a tie.

        Looks at the at most eight points around `z` instead of at all of them; agrees with
        `nearest_by_search` wherever distances can be told apart at all.

        Args:
            z: `(..., 2)` coordinates.

        Returns:
            `(...)` int64 indices in `[0, G)`.
        """
        x, y = z[..., 0], z[..., 1]
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
        points = self.points.to(z)
        distance = squared_distance(z[..., 0, None], z[..., 1, None], points[:, 0], points[:, 1])
        return distance.argmin(dim=-1)


def axis(level: int) -> Tensor:
    """`linspace(-e, e, level)` with `e = (level - 1)/2`, exact in float32."""
    return torch.arange(level, dtype=torch.float32) - (level - 1) / 2


def below_and_above(value: Tensor, start: float, count: int) -> tuple[Tensor, Tensor]:
    """Positions (int64) of the neighbours of `value` in `start, start + 1, ...` (`count` >= 2 values)."""
    # NaN must not become an index out of range: a diverging training step ends up here.
    low = (value - start).floor().clamp(0, count - 2).nan_to_num(0.0).long()
    return low, low + 1


def lattice_candidates(
    x: Tensor, y: Tensor, start: tuple[float, float], counts: tuple[int, int], first: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The four corners around `(x, y)` in an x-major unit lattice whose indices begin at `first`."""
    corners = []
    for ix in below_and_above(x, start[0], counts[0]):
        for iy in below_and_above(y, start[1], counts[1]):
            corners.append((first + ix * counts[1] + iy, ix + start[0], iy + start[1]))
    return corners


class RectangularGrid(Grid):
    """`l_x * l_y` points, x-major (paper algorithm 2)."""

    def _points(self) -> Tensor:
        return torch.cartesian_prod(axis(self.levels[0]), axis(self.levels[1]))

    def _candidates(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        lx, ly = self.levels
        return lattice_candidates(x, y, (-(lx - 1) / 2, -(ly - 1) / 2), (lx, ly), 0)


class RhombicGrid(Grid):
    """The rectangular grid, then its `(l_x - 1) * (l_y - 1)` cell centres, x-major.

    The paper's algorithm 3 adds `l_x * l_y` midpoints; this follows the authors' code.
    """

    def _points(self) -> Tensor:
        lx, ly = self.levels
        return torch.cat([torch.cartesian_prod(axis(lx), axis(ly)), torch.cartesian_prod(axis(lx - 1), axis(ly - 1))])

    def _candidates(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        lx, ly = self.levels
        corners = lattice_candidates(x, y, (-(lx - 1) / 2, -(ly - 1) / 2), (lx, ly), 0)
        centres = lattice_candidates(x, y, (-(lx - 2) / 2, -(ly - 2) / 2), (lx - 1, ly - 1), lx * ly)
        return corners + centres


class HexagonalGrid(Grid):
    """`l` rows of `l` points; even rows shifted by +1/4, odd rows by -1/4 (paper algorithm 1).

    Rows lie one unit apart and the first level of the pair serves both axes, as in the authors'
    code. Indices run row by row, x inner.

    Args:
        levels: points per axis; the second counts for nothing.
        offset: the shift, 1/4 in the method.
    """

    def __init__(self, levels: tuple[int, int], offset: float = 0.25) -> None:
        self.offset = offset
        super().__init__(levels)

    def _points(self) -> Tensor:
        level = self.levels[0]
        y, x = torch.meshgrid(axis(level), axis(level), indexing="ij")
        shift = torch.where(torch.arange(level) % 2 == 1, -self.offset, self.offset)
        return torch.stack([x + shift[:, None], y], dim=-1).reshape(-1, 2)

    def _candidates(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        level = self.levels[0]
        start = -(level - 1) / 2
        below, above = below_and_above(y, start, level)
        neighbours = []
        # Rows take turns in reaching out: beyond a row's end the rows next to it may be nearer.
        for row in ((below - 1).clamp(min=0), below, above):
            shift = torch.where(row % 2 == 1, -self.offset, self.offset).to(x)
            low, high = below_and_above(x - shift, start, level)
            for column in (low, high):
                neighbours.append((row * level + column, column + start + shift, row + start))
        return neighbours


GRIDS: dict[str, type[Grid]] = {
    "rectangular": RectangularGrid,
    "rhombic": RhombicGrid,
    "hexagonal": HexagonalGrid,
}


def make_grids(spec: QuantizerSpec, hexagonal_offset: float = 0.25) -> list[Grid]:
    """One grid for each pair of `spec`."""
    pairs = zip(spec.levels[::2], spec.levels[1::2], strict=True)
    if spec.kind == "hexagonal":
        return [HexagonalGrid(pair, hexagonal_offset) for pair in pairs]
    return [GRIDS[spec.kind](pair) for pair in pairs]
