"""Figures of a depth probe: errors by layer, and maps of true and predicted depth.

Figures are gray, and lines differ in dashes and markers, so that they remain readable in print.
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

from .depth_report import CONSTANT, RUN, UNTRAINED, DepthResult, relative_layer_positions
from .depth_samples import TEST, DepthSamples, patches_to_maps, resized_log_depth

DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "D", "^", "v")
GRAYS = ("black", "0.35", "0.55", "0.2", "0.7")
FRAMES = 4  # frames in the figure of predictions


def save_figure(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda temporary: FigureCanvasAgg(figure).print_png(str(temporary)))


def draw_errors(path: Path, results: Sequence[DepthResult]) -> None:
    """Draw the errors by layer: runs as lines with their confidence intervals, other models as markers.

    A circle marks the selected layer of a run.
    """
    figure = Figure(figsize=(7, 4.6), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    runs = [result for result in results if result.kind == RUN]
    for number, run in enumerate(runs):
        draw_run(axes, run, DASHES[number % 4], MARKERS[number % 5], GRAYS[number % 5])
    for result in results:
        if result.kind == CONSTANT:
            error = result.selected_layer_error
            axes.axhline(error, color="0.6", linewidth=0.8, linestyle=":")
            axes.annotate(result.name, (0.5, error), ha="center", va="bottom", fontsize=7, color="0.3")
        elif result.kind != RUN:
            marker = "x" if result.kind == UNTRAINED else "*"
            errors = result.errors.relative.mean(axis=0)
            axes.plot(relative_layer_positions(result.errors.layers), errors, marker, color="0.25", label=result.name)
    axes.set(xlabel="position of the layer (0: embeddings, 1: last block)", ylabel="relative depth error")
    axes.set_ylim(bottom=0)
    axes.set_title("depth predicted from image tokens, held-out episodes", fontsize=10)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def draw_run(axes: Axes, run: DepthResult, dashes: str, marker: str, gray: str) -> None:
    rows, positions = run.rows(), relative_layer_positions(run.errors.layers)
    mean, low, high = ([row[name] for row in rows] for name in ("relative_error", "low", "high"))
    axes.plot(positions, mean, dashes, marker=marker, markersize=4, color=gray, label=run.name)
    axes.fill_between(positions, low, high, color=gray, alpha=0.12, linewidth=0)
    selected = positions[run.errors.selected_index], mean[run.errors.selected_index]
    axes.plot(*selected, "o", markersize=11, markerfacecolor="none", markeredgecolor=gray)


@dataclass
class ProbedModel:
    """Depth errors of a model, the grid of its image patches and the processor of its images."""

    result: DepthResult
    grid: Grid
    processor: RocketProcessor


def draw_predictions(path: Path, models: Sequence[ProbedModel], samples: DepthSamples) -> None:
    """Draw a few held-out frames, alternating between cameras.

    Each row shows the image and its true depth, as prepared for the first model, and the depth predicted from each
    model's selected layer.
    """
    rows = samples.rows(TEST)
    frames = sorted({round(index) for index in np.linspace(0, len(rows) - 1, FRAMES)})
    figure = Figure(figsize=(1.7 * (2 + len(models)) + 0.8, 1.75 * len(frames) + 0.3), layout="constrained", dpi=120)
    table = figure.subplots(len(frames), 2 + len(models), squeeze=False)
    for number, (frame, line) in enumerate(zip(frames, table, strict=True)):
        draw_frame(line, models, samples, rows[frame], frame, number % len(models[0].processor.cameras))
    names = [f"{model.result.name}, layer {model.result.selected_layer}" for model in models]
    for axes, title in zip(table[0], ["image", "true depth", *names], strict=True):
        axes.set_title(title, fontsize=8)
    for axes in table.flat:
        axes.set(xticks=[], yticks=[])
        axes.patch.set(facecolor="white", hatch="////", edgecolor="0.7")  # visible where the depth is unknown
    save_figure(figure, path)


def draw_frame(
    line: Sequence[Axes], models: Sequence[ProbedModel], samples: DepthSamples, row: int, frame: int, camera: int
) -> None:
    """Draw one row of the figure on one gray scale, near depths bright. `frame` is the index among held-out frames."""
    processor = models[0].processor
    name = processor.cameras[camera]
    index = samples.camera_index(name)
    images = {other: samples.images[row, samples.camera_index(other)] for other in processor.cameras}
    prepared, _ = processor.prepare_images(images, {})
    log_depth, weight = resized_log_depth(samples.depth[row : row + 1, index : index + 1], processor)
    true_depth = torch.where(weight > 0.5, log_depth.exp(), torch.nan)[0, 0].numpy()
    low, high = np.nanquantile(true_depth, [0.02, 0.98]) if np.isfinite(true_depth).any() else (0, 1)
    line[0].imshow(prepared[0, camera].permute(1, 2, 0).numpy())
    line[1].imshow(true_depth, cmap="gray_r", vmin=low, vmax=high)
    for axes, model in zip(line[2:], models, strict=True):
        predicted = model.result.errors.predicted[model.result.errors.selected_index, frame]
        depth = patches_to_maps(predicted[model.processor.cameras.index(name)], model.grid).exp()
        is_known = F.adaptive_avg_pool2d(weight, (depth.shape[0], depth.shape[1]))[0, 0] >= 0.5
        image = axes.imshow(torch.where(is_known, depth, torch.nan).numpy(), cmap="gray_r", vmin=low, vmax=high)
    bar = line[0].figure.colorbar(image, ax=list(line), fraction=0.02)
    bar.set_label(f"{name}, meters", fontsize=7)
    bar.ax.tick_params(labelsize=6)
