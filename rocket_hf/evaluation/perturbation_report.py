"""Report of an evaluation under perturbations: success at each camera shift or object height, as table and figure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rocket_hf.files import create_folder, write_atomically, write_json, write_text
from rocket_hf.sims.settings import PERTURBATIONS, EnvironmentSettings, Perturbation

from .report import (
    EvaluationResult,
    PolicyIdentity,
    describe_policy,
    format_success_rate,
    settings_lines,
    success_statistics,
    versions_line,
)
from .rollouts import EpisodeResult

REPORT, TEXT, PLOT = "perturbation.json", "perturbation.md", "perturbation.png"


@dataclass(frozen=True)
class PerturbationReport:
    """Results of one policy in an environment at each value of a perturbation, from the same starts."""

    environment: EnvironmentSettings
    perturbation: Perturbation
    policy: PolicyIdentity
    episodes: Sequence[Sequence[EpisodeResult]]  # of each value
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def results(self) -> list[EvaluationResult]:
        return [EvaluationResult(self.policy, episodes) for episodes in self.episodes]

    def as_dict(self) -> dict[str, Any]:
        environments = self.perturbation.environments(self.environment)
        values = []
        for value, environment, result in zip(self.perturbation.values, environments, self.results, strict=True):
            summary = {name: part for name, part in result.summary().items() if name != "policy"}
            values.append({"value": value, "environment": environment.name, **summary})
        return {
            "environment": self.environment.name,
            "perturbation": self.perturbation.kind,
            "unit": PERTURBATIONS[self.perturbation.kind],
            "policy": asdict(self.policy),
            "settings": self.settings,
            "versions": self.versions,
            "values": values,
        }

    def as_markdown(self) -> str:
        unit = PERTURBATIONS[self.perturbation.kind]
        tasks = list(dict.fromkeys(episode.task for episode in self.episodes[0]))
        lines = [f"# {self.policy.name} in {self.environment.name} by {unit}", ""]
        lines += [f"| {unit} | all | {' | '.join(tasks)} |", "|---" * (2 + len(tasks)) + "|"]
        for value, result in zip(self.perturbation.values, self.results, strict=True):
            cells = [result.episodes, *map(result.of_task, tasks)]
            lines.append(f"| {value:g} | {' | '.join(map(format_success_rate, cells))} |")
        lines += ["", f"- {describe_policy(self.policy)}", *settings_lines(self.settings)]
        lines.append(versions_line(self.versions))
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        create_folder(folder)
        write_json(folder / REPORT, self.as_dict())
        write_text(folder / TEXT, self.as_markdown())
        self.draw(folder / PLOT)

    def draw(self, path: Path) -> None:
        """Draw the success rate against the perturbation, with its intervals."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        points = sorted(zip(self.perturbation.values, map(success_statistics, self.episodes), strict=True))
        values = [value for value, _ in points]
        rates = [100 * statistics["rate"] for _, statistics in points]
        below = [100 * (each["rate"] - each["interval"][0]) for _, each in points]
        above = [100 * (each["interval"][1] - each["rate"]) for _, each in points]
        figure = Figure(figsize=(4.6, 3.0), layout="constrained", dpi=120)
        axes = figure.subplots()
        axes.errorbar(values, rates, [below, above], marker="o", capsize=3, color="C0")
        axes.set_ylim(-3, 103)
        axes.set_xticks(values)
        axes.set_xlabel(PERTURBATIONS[self.perturbation.kind])
        axes.set_ylabel("success (%)")
        axes.set_title(self.policy.name.replace("$", r"\$"), fontsize=10)
        axes.grid(axis="y", alpha=0.3)
        write_atomically(path, lambda temporary: FigureCanvasAgg(figure).print_png(str(temporary)))
