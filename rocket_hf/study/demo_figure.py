"""The demo's one picture: losses, success with intervals, gradient agreement, times, and a strip of one rollout.

Lines differ in their dashes and bars in their hatching as well as in their colors, so that grayscale is enough.
"""

from pathlib import Path
from typing import Any

import numpy as np

from .curves import POLICIES, Curve, Curves

COLORS = {"untrained": "#9aa0a6", "none": "#d1873b", "rocket": "#2a6fdb"}
DASHES = ("-", "--", ":", "-.")
HATCHES = {"untrained": "..", "none": "//", "rocket": ""}
STRIP = 8  # pictures
SMOOTHED = 10  # steps of a running mean


def draw(path: Path, told: dict[str, Any], curves: dict[str, Curves], video: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.add_gridspec(2, 1, height_ratios=(2.3, 1))
    upper, lower = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
    success, losses, alignment, tasks, agreement, times = upper.subplots(2, 3).flatten()
    draw_success(success, told)
    draw_action_losses(losses, curves)
    draw_alignment(alignment, curves["rocket"])
    draw_tasks(tasks, told)
    draw_agreement(agreement, curves["rocket"])
    draw_times(times, told["seconds"])
    draw_strip(lower.subplots(), video, told["film"])
    for axes in figure.get_axes():
        axes.title.set_fontsize(10)
    figure.savefig(path, dpi=100)


def draw_success(axes: Any, told: dict[str, Any]) -> None:
    for place, name in enumerate(POLICIES):
        won, episodes = told["success"][name]
        low, high = told["intervals"][name]
        rate = won / episodes
        axes.bar(place, rate, color=COLORS[name], hatch=HATCHES[name], edgecolor="white")
        axes.errorbar(place, rate, [[rate - low], [high - rate]], color="black", capsize=4)
        axes.text(place + 0.06, min(high + 0.02, 0.98), f"{won}/{episodes}", va="bottom")
    axes.set(title="success on held-out starts, with 95 % intervals", ylim=(0, 1.12), yticks=np.linspace(0, 1, 6))
    axes.set_xticks(range(len(POLICIES)), POLICIES)


def draw_tasks(axes: Any, told: dict[str, Any]) -> None:
    names = list(told["tasks"])
    for place, policy in enumerate(POLICIES):
        rates = [won / episodes for won, episodes in (told["tasks"][task][policy] for task in names)]
        heights = np.arange(len(names)) + (place - 1) * 0.27
        axes.barh(heights, rates, 0.25, color=COLORS[policy], hatch=HATCHES[policy], edgecolor="white")
    axes.set(title="success by task, in the same colors", xlim=(0, 1))
    axes.set_yticks(range(len(names)), [name.removesuffix("-v3") for name in names])
    axes.invert_yaxis()


def draw_action_losses(axes: Any, curves: dict[str, Curves]) -> None:
    for dashes, (name, curve) in zip(DASHES[1::-1], curves.items(), strict=True):
        axes.plot(*smooth(curve.action), dashes, color=COLORS[name], label=name)
    axes.set(title="action loss (flow matching)", xlabel="step", yscale="log")
    axes.legend(fontsize=8)


def draw_alignment(axes: Any, curves: Curves) -> None:
    for number, (pair, curve) in enumerate(curves.pairs.items()):
        shade = 0.75 - 0.75 * number / max(1, len(curves.pairs) - 1)
        axes.plot(*smooth(curve), DASHES[number % len(DASHES)], color=str(shade), label=f"layers {pair}")
    axes.set(title="alignment loss (1 - cosine) by layer pair", xlabel="step")
    axes.legend(fontsize=8)


def draw_agreement(axes: Any, curves: Curves) -> None:
    axes.axhline(0, color="#888", linewidth=0.8)
    if curves.agreement:
        axes.plot(*zip(*curves.agreement, strict=True), "-o", color="black", label="between layer pairs")
    if curves.with_action:
        axes.plot(*zip(*curves.with_action, strict=True), "--s", color="#777", label="with the action loss")
    axes.set(title="rocket: mean cosine of gradients", xlabel="step", ylim=(-1, 1))
    axes.legend(fontsize=8)


def draw_times(axes: Any, seconds: dict[str, float]) -> None:
    names = list(seconds)
    axes.barh(names, [seconds[name] for name in names], color="#9aa0a6")
    for place, name in enumerate(names):
        axes.text(seconds[name], place, f" {seconds[name]:.0f}", va="center", fontsize=8)
    axes.set(title=f"seconds by phase, {sum(seconds.values()):.0f} in all", xlim=(0, 1.15 * max(seconds.values())))
    axes.invert_yaxis()


def draw_strip(axes: Any, video: Path, film: dict[str, Any]) -> None:
    """Moments from left to right; the cameras, side by side in the video, one above the other."""
    frames = read_frames(video)
    chosen = [frames[round(place)] for place in np.linspace(0, len(frames) - 1, min(STRIP, len(frames)))]
    cameras = chosen[0].shape[1] // chosen[0].shape[0]
    axes.imshow(np.concatenate([np.concatenate(np.split(frame, cameras, axis=1)) for frame in chosen], axis=1))
    ending = "solved" if film["success"] else "not solved"
    axes.set_title(f"one rollout of rocket: {film['task']}, {ending}")
    axes.set_axis_off()


def read_frames(video: Path) -> list[np.ndarray]:
    import av

    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return frames


def smooth(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the mean of each step's loss with those of the few before it."""
    steps, values = (np.array(column) for column in zip(*curve, strict=True))
    width = min(SMOOTHED, max(1, len(values) // 10))
    return steps[width - 1 :], np.convolve(values, np.ones(width) / width, mode="valid")
