"""Pictures of a codebook analysis as PNG: grids with their occupancy, clouds of points, mutual information."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.spatial import Voronoi

from q2d2cli.files import atomic_output

DPI = 150
MARGIN = 0.5
"""Room around the outermost points, in grid units; their cells are cut there."""
MOST_COLUMNS = 4
MOST_DOTS = 20_000
"""Of a cloud; more would cover each other."""
INK, GREY = "#222222", "#aaaaaa"
BEFORE, AFTER = "#0072b2", "#e69f00"
"""Of the Okabe-Ito set, which colour-blind readers can tell apart."""
STYLE: dict[str, Any] = {"fontsize": 11, "color": INK}


def draw(folder: Path, numbers: dict[str, Any], grids: Sequence[np.ndarray], points: np.ndarray) -> list[Path]:
    """Draw all pictures of an analysis into a folder.

    Args:
        folder: where to; must exist.
        numbers: what `analysis.analyze` returned.
        grids: `(G, 2)` points of each pair's grid; neighbours on an axis are 1 apart.
        points: `(frames, pairs, 2)` coordinates before quantization, in the units of `grids`.

    Returns:
        The files: `grid.png`, `cloud.png`, `mutual-information.png`.

    Raises:
        Q2D2Error: if a file cannot be written.
    """
    pictures = {
        "grid.png": occupancy_picture(numbers, grids),
        "cloud.png": cloud_picture(numbers, grids, points),
        "mutual-information.png": information_picture(numbers),
    }
    for name, figure in pictures.items():
        with atomic_output(folder / name) as file:
            FigureCanvasAgg(figure).print_png(file)
    return [folder / name for name in pictures]


def occupancy_picture(numbers: dict[str, Any], grids: Sequence[np.ndarray]) -> Figure:
    """Each pair's grid (paper Figure 1): cells coloured by their share of the frames, 1 for even use."""
    ratios = [np.array(row["counts"]) * row["points"] / numbers["frames"] for row in numbers["pairs"]]
    every = np.concatenate(ratios)
    # One scale for all pairs, so that panels compare; a single crowded point (silence) must not darken the rest.
    top = max(2.0, float(np.quantile(every, 0.99)))
    norm = Normalize(0, top)
    note = "dots: grid points, in the cells that are snapped to them; white cells with a cross: no frame fell there"
    figure, panels = make_panels(len(grids), f"Use of the grid points: {about(numbers)}", note)
    for number, (row, grid, ratio, axes) in enumerate(zip(numbers["pairs"], grids, ratios, panels, strict=True)):
        mesh = PolyCollection(voronoi_cells(grid), edgecolors="#c8c8c8", linewidths=0.6, cmap="cividis")
        mesh.set(array=np.ma.masked_equal(ratio, 0), norm=norm)
        axes.add_collection(mesh)
        used, unused = grid[ratio > 0], grid[ratio == 0]
        axes.scatter(used[:, 0], used[:, 1], s=5, color="white", linewidths=0.4, edgecolors=INK)
        axes.scatter(unused[:, 0], unused[:, 1], s=9, color=INK, marker="x", linewidths=0.8)
        frame_grid(axes, grid)
        axes.set_title(
            f"Pair {number}: {row['points']} points, {row['utilization']:.1%} used\n"
            f"entropy {row['entropy']:.2f} of {row['entropy_max']:.2f} bits",
            **STYLE,
        )
    bar = figure.colorbar(mesh, ax=panels, shrink=0.8, pad=0.02, extend="max" if every.max() > top else "neither")
    bar.set_label("share of frames, 1 = even use of all points", **STYLE)
    return figure


def cloud_picture(numbers: dict[str, Any], grids: Sequence[np.ndarray], points: np.ndarray) -> Figure:
    """The unquantized pairs as a cloud over their grids, with the cells that they are snapped in."""
    shown = points[:: -(-len(points) // MOST_DOTS)]
    note = f"blue: {len(shown):,} frames; orange: grid points; lines: cells that are snapped to them"
    figure, panels = make_panels(len(grids), f"Pairs before quantization: {about(numbers)}", note)
    # The more dots the fainter, so that dense places stay apart.
    opacity = min(0.6, max(0.08, 2000 / len(shown)))
    for number, (grid, axes) in enumerate(zip(grids, panels, strict=True)):
        axes.scatter(shown[:, number, 0], shown[:, number, 1], s=4, color=BEFORE, alpha=opacity, linewidths=0)
        axes.add_collection(PolyCollection(voronoi_cells(grid), facecolors="none", edgecolors=GREY, linewidths=0.7))
        axes.scatter(grid[:, 0], grid[:, 1], s=14, color=AFTER, linewidths=0.4, edgecolors=INK, zorder=3)
        frame_grid(axes, grid)
        low, high = grid.min(0) - MARGIN, grid.max(0) + MARGIN
        outside = float(((points[:, number] < low) | (points[:, number] > high)).any(axis=1).mean())
        beyond = f", {outside:.1%} of the frames outside" if outside else ""
        axes.set_title(f"Pair {number}: {len(grid)} points{beyond}", **STYLE)
    return figure


def information_picture(numbers: dict[str, Any]) -> Figure:
    """Mutual information of each pair's coordinates before and after quantization (paper Figure 4)."""
    rows = [row["mutual_information"] for row in numbers["pairs"]]
    figure = Figure(figsize=(max(6.5, 2.2 + 1.5 * len(rows)), 4.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    width = 0.27
    for side, name, color, label in (
        (-1, "before", BEFORE, "before quantization (nearest neighbours)"),
        (0, "after", AFTER, "after quantization (counts)"),
        (1, "even_grid", GREY, "the grid by itself, all points used equally"),
    ):
        bars = axes.bar(places + side * width, [row[name] or 0 for row in rows], width * 0.94, color=color, label=label)
        texts = ["-" if row[name] is None else f"{row[name]:.2f}" for row in rows]
        axes.bar_label(bars, texts, padding=3, fontsize=10, color=INK)
    highest = max(max(row["before"] or 0, row["after"], row["even_grid"]) for row in rows)
    axes.set_ylim(0, max(0.1, 1.15 * highest))
    axes.set_xticks(places, [f"pair {number}" for number in range(len(rows))], fontsize=11)
    axes.set_ylabel("mutual information, bits", **STYLE)
    axes.set_title(f"Mutual information of the two coordinates of a pair\n{about(numbers)}", fontsize=13, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False, fontsize=10, ncols=1)
    return figure


def make_panels(count: int, title: str, note: str) -> tuple[Figure, list[Axes]]:
    """A figure with `count` square panels under one title."""
    rows = -(-count // MOST_COLUMNS)
    columns = -(-count // rows)
    figure = Figure(figsize=(max(7.5, 4.4 * columns + 1), 4.6 * rows + 0.9), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for empty in panels[count:]:
        empty.set_visible(False)
    figure.suptitle(title, fontsize=14, color=INK)
    figure.supxlabel(note, fontsize=10, color=INK)
    return figure, panels[:count]


def frame_grid(axes: Axes, grid: np.ndarray) -> None:
    """Equal scales, limits around the grid, few ticks."""
    # A little more than the margin, so that the outermost lines show.
    low, high = grid.min(0) - 1.1 * MARGIN, grid.max(0) + 1.1 * MARGIN
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.set_xlabel("first coordinate, grid units", fontsize=10, color=INK)
    axes.set_ylabel("second coordinate, grid units", fontsize=10, color=INK)
    axes.tick_params(labelsize=9, length=3)
    axes.locator_params(nbins=5, integer=True)
    axes.spines[:].set_visible(False)


def about(numbers: dict[str, Any]) -> str:
    """What was analyzed, in a few words."""
    return f"{numbers['model']}, {numbers['quantizer']} grids, {numbers['frames']:,} frames"


def voronoi_cells(points: np.ndarray) -> list[np.ndarray]:
    """The cell of each of `(G, 2)` points as a polygon, cut `MARGIN` beyond the outermost points."""
    low, high = points.min(0) - MARGIN, points.max(0) + MARGIN
    mirrored = [points]
    # Mirror images beyond the four edges turn the edges into borders of cells.
    for axis in (0, 1):
        for edge in (low[axis], high[axis]):
            image = points.copy()
            image[:, axis] = 2 * edge - image[:, axis]
            mirrored.append(image)
    diagram = Voronoi(np.concatenate(mirrored))
    return [diagram.vertices[diagram.regions[diagram.point_region[i]]] for i in range(len(points))]
