"""Plots of an ablation. A variant has the same color, hatching, dashes and marker in all plots.

The numbers of each plot are written to a CSV file of the same name.
"""

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from rocket_hf.analysis.depth_report import CONSTANT, RUN, relative_layer_positions
from rocket_hf.files import write_atomically, write_csv

from .ablation_depth import DepthsByModel, ProbedVariant, mean_errors
from .ablation_results import Variant
from .curves import Curve
from .demo_figure import smooth

# From light to dark, so that variants are distinguishable in grayscale; repeated if there are more variants.
COLORS = ("#d9b44a", "#7fb77e", "#4a94b8", "#8a4f9e", "#1d2a5c", "#c4593b", "#767676", "#000000")
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "oo", "**")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 3)), (0, (3, 5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
Rows = Sequence[Sequence[Any]]


class VariantStyles:
    """Plot styles of the variants, as keyword arguments of matplotlib."""

    def __init__(self, names: Sequence[str]):
        styles = zip(cycle(COLORS), cycle(HATCHES), cycle(DASHES), cycle(MARKERS), strict=True)
        self.by_name = dict(zip(names, styles, strict=False))

    def bar(self, name: str) -> dict[str, Any]:
        color, hatch, _, _ = self.by_name[name]
        return {"color": color, "hatch": hatch, "edgecolor": "white"}

    def line(self, name: str) -> dict[str, Any]:
        color, _, dashes, _ = self.by_name[name]
        return {"color": color, "linestyle": dashes, "linewidth": 1.6, "label": name}

    def points(self, name: str) -> dict[str, Any]:
        color, _, _, marker = self.by_name[name]
        return {"marker": marker, "markersize": 5, "markerfacecolor": "white", "markeredgecolor": color}


def plot_all(folder: Path, variants: dict[str, Variant], results: dict[str, Any], depths: DepthsByModel) -> list[str]:
    """Draw all plots; return their names in the order of the report."""
    style = VariantStyles(list(variants))
    aligned = {name: variant for name, variant in variants.items() if any(run.alignment for run in variant.runs)}
    plot_success(folder, results, style)
    plot_losses(folder, variants, aligned, style)
    if aligned:
        plot_agreement(folder, aligned, style)
    if depths:
        plot_depth(folder, depths, style)
    return ["success", "losses", *(["agreement"] if aligned else []), *(["depth"] if depths else [])]


def write_plot(path: Path, draw: Callable[[Any], None], panels: int = 1) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2 * panels if panels > 1 else 7.5, 4), layout="constrained", dpi=110)
    canvas = FigureCanvasAgg(figure)
    draw(figure.subplots(1, panels))
    write_atomically(path, lambda temporary: canvas.print_png(str(temporary)))


def plot_success(folder: Path, results: dict[str, Any], style: VariantStyles) -> None:
    def draw(axes: Any) -> None:
        for position, (name, values) in enumerate(results.items()):
            low, high = values["interval"]
            axes.bar(position, values["rate"], 0.7, **style.bar(name))
            axes.errorbar(position, values["rate"], [[values["rate"] - low], [high - values["rate"]]], color="black",
                          capsize=5)  # fmt: skip
            for number, (successes, rollouts) in enumerate(values["by_seed"].values()):
                offset = 0.12 * (number - (len(values["by_seed"]) - 1) / 2)
                axes.plot(position + offset, successes / rollouts, linestyle="", **style.points(name), zorder=3)
            axes.text(position, min(high + 0.02, 1.02), f"{values['successes']}/{values['rollouts']}", ha="center")
        axes.set(ylabel="success rate", ylim=(0, 1.12), yticks=np.linspace(0, 1, 6))
        axes.set_title("success rate on the same held-out episodes: 95 % intervals, and each seed", fontsize=10)
        axes.set_xticks(range(len(results)), list(results))

    rows = [
        [name, seed, count, rollouts, round(count / rollouts, 6), *(round(end, 6) for end in values["interval"])]
        for name, values in results.items()
        for seed, (count, rollouts) in counts_by_seed(values).items()
    ]
    write_plot(folder / "success.png", draw)
    header = ["variant", "seed", "successes", "rollouts", "rate", "low_of_all", "high_of_all"]
    write_csv(folder / "success.csv", header, rows)


def counts_by_seed(values: dict[str, Any]) -> dict[Any, tuple[int, int]]:
    return values["by_seed"] | {"all": (values["successes"], values["rollouts"])}


def mean_curve(curves: list[Curve]) -> Curve:
    """Average the curves of several seeds at the steps that all of them have."""
    by_step = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*map(set, by_step)))
    return [(step, sum(values[step] for values in by_step) / len(by_step)) for step in steps]


def plot_losses(folder: Path, variants: dict[str, Variant], aligned: dict[str, Variant], style: VariantStyles) -> None:
    def draw(panels: Any) -> None:
        for name, variant in variants.items():
            panels[0].plot(*smooth(mean_curve([run.action for run in variant.runs])), **style.line(name))
        for name, variant in aligned.items():
            panels[1].plot(*smooth(mean_curve([run.alignment for run in variant.runs])), **style.line(name))
        panels[0].set(xlabel="step", yscale="log")
        panels[0].set_title("action loss (flow matching), mean over seeds", fontsize=10)
        panels[1].set(xlabel="step")
        panels[1].set_title("alignment loss (1 - cosine), mean over layer pairs and seeds", fontsize=10)
        add_legends(panels)

    write_plot(folder / "losses.png", draw, panels=2)
    write_csv(folder / "losses.csv", *curve_rows(variants, ("action", "alignment")))


def plot_agreement(folder: Path, aligned: dict[str, Variant], style: VariantStyles) -> None:
    titles = {"between_pairs": "between layer pairs", "with_action": "of layer pairs with the action loss"}

    def draw(panels: Any) -> None:
        for axes, (kind, title) in zip(panels, titles.items(), strict=True):
            axes.axhline(0, color="#888", linewidth=0.8)
            for name, variant in aligned.items():
                curves = [getattr(run, kind) for run in variant.runs]
                if all(curves):
                    steps, values = zip(*mean_curve(curves), strict=True)
                    axes.plot(steps, values, **style.line(name), **style.points(name))
            axes.set(xlabel="step")
            axes.set_title(f"mean cosine of gradients {title}", fontsize=10)
        add_legends(panels)

    write_plot(folder / "agreement.png", draw, panels=2)
    write_csv(folder / "agreement.csv", *curve_rows(aligned, ("between_pairs", "conflicting", "with_action")))


def plot_depth(folder: Path, depths: DepthsByModel, style: VariantStyles) -> None:
    runs = {name: models for name, models in depths.items() if models[0].kind == RUN}
    baselines = {name: models for name, models in depths.items() if name not in runs}

    def draw(panels: Any) -> None:
        for name, models in runs.items():
            positions, errors = relative_layer_positions(models[0].layers), 100 * mean_errors(models)
            panels[0].plot(positions, errors, **style.line(name), **style.points(name))
        for position, (name, models) in enumerate(runs.items()):
            panels[1].bar(position, 100 * np.mean([model.error for model in models]), 0.7, **style.bar(name))
            for model in models:
                panels[1].plot(position, 100 * model.error, linestyle="", **style.points(name), zorder=3)
        for marker, (name, models) in zip(cycle("x*+1"), baselines.items(), strict=False):
            plot_baseline(panels, name, models, marker)
        panels[0].set(xlabel="position of the layer (0: embeddings, 1: last block)", ylabel="relative error, %")
        panels[0].set_title("depth predicted from each layer's image tokens", fontsize=10)
        panels[1].set_xticks(range(len(runs)), list(runs), fontsize=8)
        panels[1].set_title("at the layer selected on validation episodes: mean, and each seed", fontsize=10)
        add_legends(panels)

    rows = [
        [name, models[0].kind, model.seed, layer, format_number(error), index == model.selected_index]
        for name, models in depths.items()
        for model in models
        for index, (layer, error) in enumerate(zip(model.layers, model.errors, strict=True))
    ]
    write_plot(folder / "depth.png", draw, panels=2)
    write_csv(folder / "depth.csv", ["name", "kind", "seed", "layer", "relative_error", "selected"], rows)


def plot_baseline(panels: Any, name: str, models: list[ProbedVariant], marker: str) -> None:
    """Draw a model as markers by layer in the first panel, and as a horizontal line in the second."""
    if models[0].kind != CONSTANT:
        positions, errors = relative_layer_positions(models[0].layers), 100 * mean_errors(models)
        panels[0].plot(positions, errors, marker, color="0.2", markersize=7, label=name)
    dashes = {"x": "--", "*": "-", "+": ":", "1": "-."}[marker]
    error = 100 * float(np.mean([model.error for model in models]))
    panels[1].axhline(error, color="0.2", linestyle=dashes, linewidth=1, label=name)


def add_legends(panels: Any) -> None:
    for axes in panels:
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8)


def curve_rows(variants: dict[str, Variant], kinds: tuple[str, ...]) -> tuple[list[str], Rows]:
    """Return the header and one row per step of each run. Cells are empty if a run has no value."""
    rows = []
    for name, variant in variants.items():
        for run in variant.runs:
            curves = [dict(getattr(run, kind)) for kind in kinds]
            for step in sorted(set().union(*curves)):
                rows.append([name, run.seed, step, *(format_number(curve.get(step)) for curve in curves)])
    return ["variant", "seed", "step", *kinds], rows


def format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
