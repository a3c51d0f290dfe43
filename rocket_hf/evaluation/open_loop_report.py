"""Report of an open-loop evaluation: errors of each joint with intervals over episodes, and a plot of one episode."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rocket_hf.files import create_folder, write_atomically, write_json, write_text

from .open_loop import BASELINES, POLICY, PREDICTORS, OpenLoopEpisode
from .report import PolicyIdentity, describe_policy, versions_line

REPORT, TEXT, PLOT = "open_loop.json", "open_loop.md", "open_loop.png"
# Dashes and grays of the lines in the plot, which remain readable in print.
LINES: dict[str, dict[str, Any]] = {
    "recorded": {"color": "black", "linewidth": 1.6},
    POLICY: {"color": "C0", "linewidth": 1.2},
    "hold still": {"color": "0.55", "linewidth": 0.9, "linestyle": ":"},
    "nearest neighbor": {"color": "0.4", "linewidth": 0.9, "linestyle": "--"},
}


@dataclass(frozen=True)
class MeanWithInterval:
    """Mean over episodes, and its 95 % interval of Student's t distribution; infinite for a single episode."""

    mean: float
    low: float
    high: float

    def format(self, signed: bool = False) -> str:
        sign = "+" if signed else ""
        interval = f"{self.low:{sign}.4g} to {self.high:{sign}.4g}" if math.isfinite(self.high) else "one episode"
        return f"{self.mean:{sign}.4g} ({interval})"


def mean_with_interval(values: Sequence[float]) -> MeanWithInterval:
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return MeanWithInterval(mean, -math.inf, math.inf)
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return MeanWithInterval(mean, mean - half, mean + half)


def mean_error(errors: Sequence[float]) -> MeanWithInterval:
    """Return the mean of errors, which are not negative, so that neither is their interval."""
    value = mean_with_interval(errors)
    return replace(value, low=max(0.0, value.low))


@dataclass(frozen=True)
class OpenLoopReport:
    """Errors of a policy and of the baselines on one dataset, by action dimension."""

    policy: PolicyIdentity
    dataset: str
    joints: list[str]
    episodes: list[OpenLoopEpisode]
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)

    def errors(self, predictor: str) -> np.ndarray:
        """Return the mean absolute error of each joint in each episode, (episodes, joints)."""
        return torch.stack([episode.errors(predictor) for episode in self.episodes]).double().numpy()

    def joint_errors(self, predictor: str) -> dict[str, MeanWithInterval]:
        """Return the error of each joint, and of the mean of all joints."""
        table = self.errors(predictor)
        by_joint = {joint: mean_error(table[:, number].tolist()) for number, joint in enumerate(self.joints)}
        return by_joint | {"mean": mean_error(table.mean(axis=1).tolist())}

    def differences(self) -> dict[str, MeanWithInterval]:
        """Return the policy's mean error minus that of each baseline, paired by episode."""
        own = self.errors(POLICY).mean(axis=1)
        return {name: mean_with_interval(own - self.errors(name).mean(axis=1)) for name in BASELINES}

    def as_dict(self) -> dict[str, Any]:
        return {
            "policy": asdict(self.policy),
            "dataset": self.dataset,
            "settings": self.settings,
            "versions": self.versions,
            "frames": sum(len(episode.recorded) for episode in self.episodes),
            "errors": {
                name: {joint: finite_values(error) for joint, error in self.joint_errors(name).items()}
                for name in PREDICTORS
            },
            "policy_minus_baseline": {name: finite_values(value) for name, value in self.differences().items()},
            "episodes": [
                {
                    "episode": episode.number,
                    "frames": len(episode.recorded),
                    "errors": {
                        name: dict(zip(self.joints, episode.errors(name).tolist(), strict=True)) for name in PREDICTORS
                    },
                }
                for episode in self.episodes
            ],
        }

    def as_markdown(self) -> str:
        columns = {name: self.joint_errors(name) for name in PREDICTORS}
        lines = [f"# {self.policy.name} on {self.dataset}, open loop", ""]
        lines += [f"| joint | {' | '.join(PREDICTORS)} |", "|---" * (1 + len(PREDICTORS)) + "|"]
        for joint in [*self.joints, "mean"]:
            label = "**mean**" if joint == "mean" else joint.replace("|", "\\|")
            lines.append(f"| {label} | {' | '.join(columns[name][joint].format() for name in PREDICTORS)} |")
        lines += ["", *(difference_sentence(name, value) for name, value in self.differences().items()), ""]
        lines += [f"- {describe_policy(self.policy)}"]
        lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in self.settings.items()]
        lines += [
            "- errors: mean absolute error in the dataset's units, averaged over the frames of each episode, then over "
            "episodes",
            "- intervals: Student's t over episodes, at 95 %",
            versions_line(self.versions),
        ]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        create_folder(folder)
        write_json(folder / REPORT, self.as_dict())
        write_text(folder / TEXT, self.as_markdown())
        draw_episode(folder / PLOT, self.joints, self.episodes[0], f"{self.policy.name} on {self.dataset}")


def finite_values(value: MeanWithInterval) -> dict[str, Any]:
    """Return the mean and its interval for JSON, which has no infinite numbers."""
    interval = [value.low, value.high] if math.isfinite(value.high) else None
    return {"mean": value.mean, "interval": interval}


def difference_sentence(baseline: str, difference: MeanWithInterval) -> str:
    """Return a sentence that claims a difference only if its interval excludes zero."""
    text = f"- policy minus {baseline}: {difference.format(signed=True)}"
    if difference.low <= 0 <= difference.high:
        return f"{text}, these episodes do not show which is better"
    return f"{text}, the {'policy' if difference.high < 0 else 'baseline'} is better"


def draw_episode(path: Path, joints: Sequence[str], episode: OpenLoopEpisode, title: str) -> None:
    """Draw the recorded and the predicted actions of one episode, one panel per joint."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if len(joints) > 1 else 1
    rows = math.ceil(len(joints) / columns)
    figure = Figure(figsize=(5 * columns, 1.9 * rows + 0.8), layout="constrained", dpi=110)
    panels = np.atleast_1d(figure.subplots(rows, columns, sharex=True)).ravel()
    lines = {"recorded": episode.recorded} | episode.predicted
    for number, panel in enumerate(panels):
        if number >= len(joints):
            panel.set_axis_off()
            continue
        for name, style in LINES.items():
            panel.plot(lines[name][:, number].numpy(), label=name, **style)
        panel.set_title(joints[number].replace("$", r"\$"), fontsize=9)
        panel.tick_params(labelsize=7)
    for panel in panels[max(0, len(joints) - columns) : len(joints)]:
        panel.set_xlabel("frame", fontsize=8)
        panel.tick_params(labelbottom=True)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(LINES), fontsize=8)
    figure.suptitle(f"{title}: episode {episode.number}".replace("$", r"\$"), fontsize=10)
    write_atomically(path, lambda temporary: FigureCanvasAgg(figure).print_png(str(temporary)))
