"""Figures of a study: success of each arm by seed, and success against the shift of the camera with the depth error."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .ablation_plots import VariantStyles, write_plot
from .seed_statistics import t_interval
from .study_file import Study
from .study_summary import ArmSummary, PhaseSummary, SettingSummary

Draw = Callable[[Any], None]


def draw_figures(out: Path, study: Study, phases: Sequence[PhaseSummary]) -> dict[str, list[str]]:
    """Draw all figures; return the names of their files, without suffix, by phase."""
    figures: dict[str, list[str]] = {}
    for phase in phases:
        for setting in phase.settings:
            name, style = f"{phase.name}-{setting.setting}", VariantStyles([arm.variant for arm in setting.arms])
            write_plot(out / f"{name}.png", success_by_seed(setting, style))
            figures.setdefault(phase.name, []).append(name)
            if len(shifts(study, setting)) > 1:
                write_plot(out / f"{name}-shift.png", success_by_shift(study, setting, style), panels=2)
                figures[phase.name].append(f"{name}-shift")
    return figures


def shifts(study: Study, summary: SettingSummary) -> dict[str, float]:
    """Return the shift of each evaluation of a phase that has one, in ascending order."""
    values = {name: study.evaluations[name].shift for name in study.phases[summary.phase].evaluations}
    known = [(name, shift) for name, shift in values.items() if shift is not None]
    return dict(sorted(known, key=lambda entry: entry[1]))


def success_by_seed(summary: SettingSummary, style: VariantStyles) -> Draw:
    """Return a plot with one point per seed, and the mean with its interval over seeds."""

    def draw(axes: Any) -> None:
        for position, arm in enumerate(summary.arms):
            rates = list(arm.rates.values())
            offsets = np.linspace(-0.15, 0.15, len(rates)) if len(rates) > 1 else [0.0]
            axes.plot(position + np.asarray(offsets), rates, linestyle="none", **style.points(arm.variant))
            low, high = arm.interval
            if len(rates) > 1:
                axes.errorbar(position + 0.3, arm.mean, [[arm.mean - low], [high - arm.mean]], color="black",
                              marker="_", markersize=12, capsize=4)  # fmt: skip
        axes.set_xticks(range(len(summary.arms)), [arm.variant for arm in summary.arms])
        axes.set_xlim(-0.6, len(summary.arms) - 0.4)
        axes.set_ylim(-3, 103)
        axes.set_ylabel("success, %")
        axes.set_title(f"{summary.setting}: one point per seed; mean and 95 % interval over seeds", fontsize=10)

    return draw


def success_by_shift(study: Study, summary: SettingSummary, style: VariantStyles) -> Draw:
    """Return a plot of the success against the shift of the camera, with the depth error of the arms beside it."""
    known = shifts(study, summary)

    def draw(panels: Any) -> None:
        left, right = panels
        for arm in summary.arms:
            draw_shift_curve(left, arm, known, style)
        left.set_xlabel("shift of the camera, degrees")
        left.set_ylabel("success, %")
        left.set_ylim(-3, 103)
        left.set_xticks(list(known.values()))
        left.legend(fontsize=8)
        left.set_title(f"{summary.setting}: mean and 95 % interval over seeds", fontsize=10)
        draw_depth_errors(right, summary.arms, style)

    return draw


def draw_shift_curve(axes: Any, arm: ArmSummary, known: dict[str, float], style: VariantStyles) -> None:
    points = [(shift, rates) for name, shift in known.items() if (rates := list(arm.by_evaluation[name].values()))]
    if not points:
        return
    means = [float(np.mean(rates)) for _, rates in points]
    positions = [shift for shift, _ in points]
    axes.plot(positions, means, **style.line(arm.variant), **style.points(arm.variant))
    if all(len(rates) > 1 for _, rates in points):
        ends = np.array([clipped_interval(rates) for _, rates in points])
        axes.fill_between(positions, ends[:, 0], ends[:, 1], color=style.line(arm.variant)["color"], alpha=0.15)


def clipped_interval(rates: Sequence[float]) -> tuple[float, float]:
    low, high = t_interval(rates)
    return max(0.0, low), min(100.0, high)


def draw_depth_errors(axes: Any, arms: Sequence[ArmSummary], style: VariantStyles) -> None:
    probed = [arm for arm in arms if arm.depth_error is not None]
    for position, arm in enumerate(probed):
        axes.bar(position, 100 * (arm.depth_error or 0), 0.7, **style.bar(arm.variant))
    others = [(kind, error) for arm in probed[:1] for kind, error in arm.depth_errors.items() if kind]
    for kind, error in others:
        axes.axhline(100 * error, color="black", linestyle=":", linewidth=1)
        axes.annotate(kind.rstrip("_"), (len(probed) - 0.45, 100 * error), fontsize=8, va="bottom")
    axes.set_xticks(range(len(probed)), [arm.variant for arm in probed])
    axes.set_xlim(-0.6, len(probed) + (0.3 if others else -0.4))
    axes.set_ylabel("relative depth error of the image tokens, %")
    if not probed:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "depth not probed", ha="center", transform=axes.transAxes)
