"""A depth probe's pictures, in grays: errors by layer, and depth as it was and as each model tells it.

Lines differ in dashes and marks, so that they can be told apart in print.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rocket_hf.files import write_atomically
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.teachers.teacher import Grid

from .depth_report import CONSTANT, RUN, UNTRAINED, Measured
from .depth_samples import TEST, DepthSamples, as_maps, resized_log_depth

DASHES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "D", "^", "v")
SHADES = ("black", "0.35", "0.55", "0.2", "0.7")
SHOWN = 4  # frames


def save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda place: FigureCanvasAgg(figure).print_png(str(place)))


def draw_errors(path: Path, measured: Sequence[Measured]) -> None:
    """Runs are lines, with the bootstrap's interval; the others are marks. The chosen layer of a run is ringed."""
    figure = Figure(figsize=(7, 4.6), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    runs = [each for each in measured if each.kind == RUN]
    for number, run in enumerate(runs):
        draw_run(axes, run, DASHES[number % 4], MARKS[number % 5], SHADES[number % 5])
    for each in measured:
        if each.kind == CONSTANT:
            axes.axhline(each.best_error, color="0.6", linewidth=0.8, linestyle=":")
            axes.annotate(each.name, (0.5, each.best_error), ha="center", va="bottom", fontsize=7, color="0.3")
        elif each.kind != RUN:
            mark = "x" if each.kind == UNTRAINED else "*"
            axes.plot(places(each), each.errors.relative.mean(axis=0), mark, color="0.25", label=each.name)
    axes.set(xlabel="depth of the layer (0 embeddings, 1 last block)", ylabel="relative error of depth")
    axes.set_ylim(bottom=0)
    axes.set_title("depth read off image tokens, held-out episodes", fontsize=10)
    axes.legend(fontsize=8)
    save(figure, path)


def draw_run(axes: Axes, run: Measured, dashes: str, mark: str, shade: str) -> None:
    rows = run.rows()
    mean, low, high = ([row[name] for row in rows] for name in ("relative_error", "low", "high"))
    axes.plot(places(run), mean, dashes, marker=mark, markersize=4, color=shade, label=run.name)
    axes.fill_between(places(run), low, high, color=shade, alpha=0.12, linewidth=0)
    chosen = places(run)[run.errors.best], mean[run.errors.best]
    axes.plot(*chosen, "o", markersize=11, markerfacecolor="none", markeredgecolor=shade)


def places(each: Measured) -> list[float]:
    return [layer / max(each.errors.layers) for layer in each.errors.layers]


@dataclass
class View:
    """Whose predictions are shown, on which grid of patches, of pictures as which processor makes them."""

    measured: Measured
    grid: Grid
    processor: RocketProcessor


def draw_predictions(path: Path, views: Sequence[View], samples: DepthSamples) -> None:
    """For a few held-out frames, cameras by turns: the picture and its depth as the first view's policy sees them, and
    the depth that each view's chosen layer tells."""
    rows = samples.rows(TEST)
    shown = sorted({round(place) for place in np.linspace(0, len(rows) - 1, SHOWN)})
    figure = Figure(figsize=(1.7 * (2 + len(views)) + 0.8, 1.75 * len(shown) + 0.3), layout="constrained", dpi=120)
    table = figure.subplots(len(shown), 2 + len(views), squeeze=False)
    for number, (place, line) in enumerate(zip(shown, table, strict=True)):
        draw_frame(line, views, samples, rows[place], place, number % len(views[0].processor.cameras))
    names = [f"{view.measured.name}, layer {view.measured.best_layer}" for view in views]
    for axes, title in zip(table[0], ["picture", "true depth", *names], strict=True):
        axes.set_title(title, fontsize=8)
    for axes in table.flat:
        axes.set(xticks=[], yticks=[])
        axes.patch.set(facecolor="white", hatch="////", edgecolor="0.7")  # where no depth is known
    save(figure, path)


def draw_frame(
    line: Sequence[Axes], views: Sequence[View], samples: DepthSamples, row: int, place: int, camera: int
) -> None:
    """`place` is that of the row among those held out. Near is bright, on one scale in the line."""
    processor = views[0].processor
    name = processor.cameras[camera]
    number = samples.of(name)
    images = {other: samples.images[row, samples.of(other)] for other in processor.cameras}
    picture, _ = processor.prepare_images(images, {})
    log_depth, weight = resized_log_depth(samples.depth[row : row + 1, number : number + 1], processor)
    depth = torch.where(weight > 0.5, log_depth.exp(), torch.nan)
    true = depth[0, 0].numpy()
    low, high = np.nanquantile(true, [0.02, 0.98]) if np.isfinite(true).any() else (0, 1)
    line[0].imshow(picture[0, camera].permute(1, 2, 0).numpy())
    line[1].imshow(true, cmap="gray_r", vmin=low, vmax=high)
    for axes, view in zip(line[2:], views, strict=True):
        found = view.measured.errors.found[view.measured.errors.best, place]
        told = as_maps(found[view.processor.cameras.index(name)], view.grid).exp()
        known = F.adaptive_avg_pool2d(weight, (told.shape[0], told.shape[1]))[0, 0] >= 0.5
        image = axes.imshow(torch.where(known, told, torch.nan).numpy(), cmap="gray_r", vmin=low, vmax=high)
    bar = line[0].figure.colorbar(image, ax=list(line), fraction=0.02)
    bar.set_label(f"{name}, meters", fontsize=7)
    bar.ax.tick_params(labelsize=6)
