"""Tables of numbers as CSV files and as grayscale heatmaps, which stay readable when printed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .files import write_atomically, write_csv

MAX_LABELED_CELLS = 150  # larger heatmaps do not show the number of each cell


def write_table(path: Path, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], corner: str) -> None:
    """Write a CSV file with named rows and columns. NaN becomes an empty cell."""
    cells = [["" if np.isnan(value) else f"{value:.6g}" for value in row] for row in values]
    write_csv(path, [corner, *columns], ([name, *row] for name, row in zip(rows, cells, strict=True)))


def write_heatmap(
    path: Path,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    labels: tuple[str, str],
    title: str,
    marked: Sequence[tuple[int, int]] = (),
    limits: tuple[float, float] | None = None,
) -> None:
    """Write a grayscale PNG in which high values are bright.

    `marked` cells (row, column) get a dot; `labels` are the titles of the row axis and the column axis.
    """
    height, width = values.shape
    figure = Figure(figsize=(2.4 + 0.34 * max(width, 6), 1.8 + 0.3 * max(height, 4)), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    low, high = limits or (float(np.nanmin(values)), float(np.nanmax(values)))
    image = axes.imshow(values, cmap="gray", vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(width), columns, rotation=90 if max(map(len, columns)) > 3 else 0, fontsize=7)
    axes.set_yticks(range(height), rows, fontsize=7)
    axes.set_ylabel(labels[0])
    axes.set_xlabel(labels[1])
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes)
    for row, column in marked:
        axes.plot(column, row, "o", markersize=6, markerfacecolor="white", markeredgecolor="black")
    if values.size <= MAX_LABELED_CELLS and not marked:
        write_cell_labels(axes, values, low, high)
    write_atomically(path, lambda temporary: FigureCanvasAgg(figure).print_png(str(temporary)))


def write_cell_labels(axes, values: np.ndarray, low: float, high: float) -> None:
    middle = (low + high) / 2
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "black" if value > middle else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=5.5, color=color)
