"""Draws the pictures of docs/method.md: the three grids with their cells, and a pair of features on its way over one.

python docs/grids.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from q2d2cli.evaluation.pictures import voronoi_cells
from q2d2cli.quantizers.geometry import points

HERE = Path(__file__).parent
SIDE, GAP, LABEL = 250, 40, 26
"""Of a panel, in the pictures' own units."""
LEVELS = 7
STYLE = (
    "<style>svg{color:#222;font:14px system-ui,sans-serif}@media(prefers-color-scheme:dark){svg{color:#ddd}}"
    "text{fill:currentColor;text-anchor:middle}.cell{fill:none;stroke:currentColor;stroke-opacity:.35}"
    ".point{fill:#4f46e5}.centre{fill:#e08a00}.path{fill:none;stroke:currentColor;stroke-opacity:.55}"
    ".used{fill:#4f46e5;fill-opacity:.22}</style>"
)


def place(where: np.ndarray, left: float) -> np.ndarray:
    """Coordinates of a grid as those of its panel, the second one upwards."""
    scale = SIDE / (LEVELS + 0.5)  # rows of the hexagonal grid are shifted by a quarter of a step
    return np.stack([left + SIDE / 2 + where[:, 0] * scale, LABEL + SIDE / 2 - where[:, 1] * scale], axis=1)


def polygon(cell: np.ndarray, left: float, kind: str) -> str:
    """One cell."""
    centre = cell.mean(0)
    corners = place(cell[np.argsort(np.arctan2(*(cell - centre).T))], left)
    return f'<polygon class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in corners)}"/>'


def grids() -> str:
    """The three grids with seven levels on each axis."""
    parts = []
    for number, kind in enumerate(("rectangular", "rhombic", "hexagonal")):
        left = number * (SIDE + GAP)
        grid = points(kind, LEVELS, LEVELS)
        parts.append(f'<text x="{left + SIDE / 2}" y="16">{kind}, {len(grid)} points</text>')
        parts += [polygon(cell, left, "cell") for cell in voronoi_cells(grid)]
        for index, (x, y) in enumerate(place(grid, left)):
            colour = "centre" if kind == "rhombic" and index >= LEVELS**2 else "point"
            parts.append(f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    return svg(3 * SIDE + 2 * GAP, parts)


def path() -> str:
    """A smooth path of one pair, and the points that it is snapped to."""
    grid = points("rhombic", LEVELS, LEVELS)
    time = np.linspace(0, 1, 33)
    walk = np.stack([2.8 * np.cos(4.3 * time + 0.4), 2.4 * np.sin(7.1 * time) * np.cos(time)], axis=1)
    nearest = ((walk[:, None] - grid[None]) ** 2).sum(2).argmin(1)
    cells = voronoi_cells(grid)
    parts = [f'<text x="{SIDE / 2}" y="16">before: any two numbers</text>']
    parts += [polygon(cell, 0, "used" if index in nearest else "cell") for index, cell in enumerate(cells)]
    parts += [line(place(walk, 0)), *(dot(x, y, "centre") for x, y in place(walk, 0))]
    left = SIDE + GAP
    parts.append(f'<text x="{left + SIDE / 2}" y="16">after: one of {len(grid)} points</text>')
    parts += [polygon(cell, left, "cell") for cell in cells]
    parts += [line(place(grid[nearest], left)), *(dot(x, y, "point") for x, y in place(grid[nearest], left))]
    return svg(2 * SIDE + GAP, parts)


def line(where: np.ndarray) -> str:
    """A path through places of a panel."""
    return f'<polyline class="path" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in where)}"/>'


def dot(x: float, y: float, kind: str) -> str:
    """One point."""
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def svg(width: float, parts: list[str]) -> str:
    """The picture as a file that follows the reader's light or dark theme."""
    box = f'viewBox="-4 0 {width + 8} {SIDE + LABEL + 4}" width="{width + 8}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{STYLE}{"".join(parts)}</svg>\n'


PICTURES = {"grids.svg": grids, "path.svg": path}
"""Files and what draws them."""

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (HERE / name).write_text(draw(), encoding="utf-8")
        print(HERE / name)
