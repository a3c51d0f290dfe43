"""Figure of the demo: losses, success rates with intervals, gradient agreement, durations, and frames of one rollout.

Lines also differ in dashes and bars in hatching, so that the figure remains readable in grayscale.
"""

from pathlib import Path
from typing import Any

import numpy as np

from .curves import POLICIES, Curve, TrainingCurves

COLORS = {"untrained": "#9aa0a6", "none": "#d1873b", "rocket": "#2a6fdb"}
DASHES = ("-", "--", ":", "-.")
HATCHES = {"untrained": "..", "none": "//", "rocket": ""}
STRIP_FRAMES = 8  # frames of the rollout
SMOOTHING_STEPS = 10  # window of the running mean


def draw_figure(path: Path, facts: dict[str, Any], curves: dict[str, TrainingCurves], video: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.add_gridspec(2, 1, height_ratios=(2.3, 1))
    upper, lower = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
    success, losses, alignment, tasks, agreement, times = upper.subplots(2, 3).flatten()
    draw_success(success, facts)
    draw_action_losses(losses, curves)
    draw_alignment(alignment, curves["rocket"])
    draw_tasks(tasks, facts)
    draw_agreement(agreement, curves["rocket"])
    draw_times(times, facts["seconds"])
    draw_strip(lower.subplots(), video, facts["video"])
    for axes in figure.get_axes():
        axes.title.set_fontsize(10)
    figure.savefig(path, dpi=100)


def draw_success(axes: Any, facts: dict[str, Any]) -> None:
    for position, name in enumerate(POLICIES):
        successes, episodes = facts["success"][name]
        low, high = facts["intervals"][name]
        rate = successes / episodes
        axes.bar(position, rate, color=COLORS[name], hatch=HATCHES[name], edgecolor="white")
        axes.errorbar(position, rate, [[rate - low], [high - rate]], color="black", capsize=4)
        axes.text(position + 0.06, min(high + 0.02, 0.98), f"{successes}/{episodes}", va="bottom")
    axes.set(title="success rate on held-out episodes, 95 % intervals", ylim=(0, 1.12), yticks=np.linspace(0, 1, 6))
    axes.set_xticks(range(len(POLICIES)), POLICIES)


def draw_tasks(axes: Any, facts: dict[str, Any]) -> None:
    names = list(facts["tasks"])
    for number, policy in enumerate(POLICIES):
        rates = [successes / episodes for successes, episodes in (facts["tasks"][task][policy] for task in names)]
        heights = np.arange(len(names)) + (number - 1) * 0.27
        axes.barh(heights, rates, 0.25, color=COLORS[policy], hatch=HATCHES[policy], edgecolor="white")
    axes.set(title="success rate by task, same colors", xlim=(0, 1))
    axes.set_yticks(range(len(names)), [name.removesuffix("-v3") for name in names])
    axes.invert_yaxis()


def draw_action_losses(axes: Any, curves: dict[str, TrainingCurves]) -> None:
    for dashes, (name, curve) in zip(DASHES[1::-1], curves.items(), strict=True):
        axes.plot(*smooth(curve.action), dashes, color=COLORS[name], label=name)
    axes.set(title="action loss (flow matching)", xlabel="step", yscale="log")
    axes.legend(fontsize=8)


def draw_alignment(axes: Any, curves: TrainingCurves) -> None:
    for number, (pair, curve) in enumerate(curves.pairs.items()):
        gray = 0.75 - 0.75 * number / max(1, len(curves.pairs) - 1)
        axes.plot(*smooth(curve), DASHES[number % len(DASHES)], color=str(gray), label=f"layers {pair}")
    axes.set(title="alignment loss (1 - cosine) by layer pair", xlabel="step")
    axes.legend(fontsize=8)


def draw_agreement(axes: Any, curves: TrainingCurves) -> None:
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
    for position, name in enumerate(names):
        axes.text(seconds[name], position, f" {seconds[name]:.0f}", va="center", fontsize=8)
    axes.set(title=f"seconds by phase, {sum(seconds.values()):.0f} in total", xlim=(0, 1.15 * max(seconds.values())))
    axes.invert_yaxis()


def draw_strip(axes: Any, video: Path, rollout: dict[str, Any]) -> None:
    """Draw frames of a rollout from left to right, with the cameras one above the other."""
    frames = read_frames(video)
    selected = [frames[round(index)] for index in np.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames)))]
    cameras = selected[0].shape[1] // selected[0].shape[0]  # the video has the cameras side by side
    axes.imshow(np.concatenate([np.concatenate(np.split(frame, cameras, axis=1)) for frame in selected], axis=1))
    outcome = "success" if rollout["success"] else "failure"
    axes.set_title(f"one rollout of rocket: {rollout['task']}, {outcome}")
    axes.set_axis_off()


def read_frames(video: Path) -> list[np.ndarray]:
    import av

    with av.open(str(video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return frames


def smooth(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and the running mean of a curve."""
    steps, values = (np.array(column) for column in zip(*curve, strict=True))
    width = min(SMOOTHING_STEPS, max(1, len(values) // 10))
    return steps[width - 1 :], np.convolve(values, np.ones(width) / width, mode="valid")
