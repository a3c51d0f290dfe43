"""Report of an evaluation of ROCKET-2 policies: JSON for programs and model cards, Markdown for people.

Results are given for each refresh interval (the number of steps after which the goal is shown again) and are compared
with random actions.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rocket_hf.files import create_folder, write_json, write_text
from rocket_hf.sims.vizdoom.world import Event

from ..report import REPORT, TEXT, PolicyIdentity, describe_policy, settings_lines, versions_line
from ..statistics import PairedComparison, format_rate, wilson_interval
from .episode import Rocket2Episode
from .rollouts import PlayerRollouts
from .visibility import AXES, visibility_metrics

SUITE, RANDOM = "vizdoom", "random"


@dataclass(frozen=True)
class Rocket2EvaluationResult:
    """Rollouts of one policy by refresh interval."""

    policy: PolicyIdentity
    rollouts: dict[int, PlayerRollouts]

    def summary(self, random: PlayerRollouts) -> dict[str, Any]:
        name = self.policy.name
        return {
            "policy": asdict(self.policy),
            "refreshes": {
                str(refresh): rollout_values(rollouts)
                | {
                    "sight": visibility_metrics(rollouts.episodes),
                    f"against_{RANDOM}": comparison_values(rollouts, random, name, RANDOM),
                }
                for refresh, rollouts in self.rollouts.items()
            },
        }

    @property
    def speed(self) -> dict[str, dict[str, float]]:
        """Timings; unlike all other values of the report they differ each time."""
        return {
            str(refresh): {
                "steps_per_second": rollouts.steps_per_second,
                "seconds": rollouts.player_seconds,
                "seconds_with_world": rollouts.total_seconds,
            }
            for refresh, rollouts in self.rollouts.items()
        }


@dataclass(frozen=True)
class Rocket2EvaluationReport:
    """Results of one policy, or of two on the same starts, and of random actions."""

    first: Rocket2EvaluationResult
    second: Rocket2EvaluationResult | None
    random: PlayerRollouts
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON values. `overall`, the result on a model card, is that of the longest refresh interval."""
        values = {"suite": SUITE, "settings": self.settings, "versions": self.versions}
        values |= self.first.summary(self.random) | {
            "overall": overall(self.first),
            RANDOM: rollout_values(self.random),
        }
        if self.second is not None:
            values["against"] = self.second.summary(self.random) | {"overall": overall(self.second)}
            names = self.first.policy.name, self.second.policy.name
            values["comparison"] = {
                str(refresh): comparison_values(rollouts, self.second.rollouts[refresh], *names)
                for refresh, rollouts in self.first.rollouts.items()
            }
        return values | {"speed": {result.policy.name: result.speed for result in self.results}}

    @property
    def results(self) -> list[Rocket2EvaluationResult]:
        return [self.first, *([self.second] if self.second else [])]

    def as_markdown(self) -> str:
        longest = max(self.first.rollouts)
        comparison = compare(self.first.rollouts[longest], self.random, "target")
        verdict = comparison.sentence(self.first.policy.name, RANDOM)
        lines = [f"# {self.first.policy.name} in {SUITE}", "", *self.rate_table(), ""]
        lines += ["Differences on the same starts, in points, with 95 % intervals and p of the exact McNemar test:", ""]
        lines += [*self.difference_table(), "", f"With the goal shown {describe_refresh(longest)}, {verdict}", ""]
        lines += ["Predictions of the policy about its goal while it acts, against the best constant:", ""]
        lines += [*self.visibility_table(), ""]
        lines += [*(f"- {describe_policy(result.policy)}" for result in self.results), *settings_lines(self.settings)]
        lines.append("- steps per second: of all parallel episodes together, time of the policy only")
        lines.append(versions_line(self.versions))
        return "\n".join(lines) + "\n"

    def rate_table(self) -> list[str]:
        header = "| goal shown | player | reached the target | reached a wrong object | steps per second |"
        lines = [header, "|---" * 5 + "|"]
        for refresh in self.first.rollouts:
            for result in self.results:
                rollouts = result.rollouts[refresh]
                row = rates_row(describe_refresh(refresh), result.policy.name, rollouts)
                lines.append(row + f" {rollouts.steps_per_second:.0f} |")
        return [*lines, rates_row("", RANDOM, self.random) + " |"]

    def difference_table(self) -> list[str]:
        lines = ["| goal shown | | reached the target | reached a wrong object |", "|---" * 4 + "|"]
        for refresh in self.first.rollouts:
            for first, second, name in self.pairs(refresh):
                cells = (format_difference(compare(first, second, event)) for event in ("target", "wrong"))
                lines.append(f"| {describe_refresh(refresh)} | {name} | {' | '.join(cells)} |")
        return lines

    def pairs(self, refresh: int) -> list[tuple[PlayerRollouts, PlayerRollouts, str]]:
        pairs = [(result.rollouts[refresh], self.random, f"{result.policy.name} - {RANDOM}") for result in self.results]
        if self.second is not None:
            names = f"{self.first.policy.name} - {self.second.policy.name}"
            pairs.append((self.first.rollouts[refresh], self.second.rollouts[refresh], names))
        return pairs

    def visibility_table(self) -> list[str]:
        lines = ["| goal shown | policy | in view | position, x | position, y |", "|---" * 5 + "|"]
        for refresh in self.first.rollouts:
            for result in self.results:
                cells = visibility_cells(visibility_metrics(result.rollouts[refresh].episodes))
                lines.append(f"| {describe_refresh(refresh)} | {result.policy.name} | {' | '.join(cells)} |")
        return lines

    def write(self, folder: Path) -> None:
        create_folder(folder)
        write_json(folder / REPORT, self.as_dict())
        write_text(folder / TEXT, self.as_markdown())


def rollout_values(rollouts: PlayerRollouts) -> dict[str, Any]:
    steps = [episode.steps for episode in rollouts.episodes if episode.event == "target"]
    return {
        "target": event_rate(rollouts.episodes, "target"),
        "wrong": event_rate(rollouts.episodes, "wrong"),
        "neither": event_rate(rollouts.episodes, "none"),
        "mean_steps_of_successes": sum(steps) / len(steps) if steps else None,
        "episodes": [episode_values(episode) for episode in rollouts.episodes],
    }


def event_rate(episodes: Sequence[Rocket2Episode], event: Event) -> dict[str, Any]:
    count = count_events(episodes, event)
    interval = list(wilson_interval(count, len(episodes)))
    return {"count": count, "episodes": len(episodes), "rate": count / len(episodes), "interval": interval}


def count_events(episodes: Sequence[Rocket2Episode], event: Event) -> int:
    return sum(episode.event == event for episode in episodes)


def episode_values(episode: Rocket2Episode) -> dict[str, Any]:
    return {
        "seed": episode.start.seed,
        "target": episode.start.target,
        "kind": episode.kind,
        "event": episode.event,
        "steps": episode.steps,
    }


def overall(result: Rocket2EvaluationResult) -> dict[str, Any]:
    longest = max(result.rollouts)
    values = event_rate(result.rollouts[longest].episodes, "target")
    return {"refresh": longest, "successes": values.pop("count"), **values}


def compare(first: PlayerRollouts, second: PlayerRollouts, event: Event) -> PairedComparison:
    assert [episode.start for episode in first.episodes] == [episode.start for episode in second.episodes]
    outcomes = ([episode.event == event for episode in rollouts.episodes] for rollouts in (first, second))
    return PairedComparison.from_outcomes(*outcomes)


def comparison_values(first: PlayerRollouts, second: PlayerRollouts, *names: str) -> dict[str, Any]:
    wrong = compare(first, second, "wrong").as_dict(*names)
    del wrong["sentence"]  # It is about successes.
    return {"target": compare(first, second, "target").as_dict(*names), "wrong": wrong}


def describe_refresh(refresh: int) -> str:
    return "at every step" if refresh == 1 else f"every {refresh} steps"


def rates_row(refresh: str, name: str, rollouts: PlayerRollouts) -> str:
    counts = (count_events(rollouts.episodes, event) for event in ("target", "wrong"))
    cells = (format_rate(count, len(rollouts.episodes)) for count in counts)
    return f"| {refresh} | {name} | {' | '.join(cells)} |"


def format_difference(comparison: PairedComparison) -> str:
    low, high = comparison.interval
    interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
    return f"{100 * comparison.difference:+.1f} ({interval}), p = {comparison.p_value:.3g}"


def visibility_cells(metrics: dict[str, Any]) -> list[str]:
    """Return the table cells for visibility, x and y."""
    visibility, point = metrics["visibility"], metrics["point"]
    cells = ["no such head" if visibility is None else format_metric(visibility, "accuracy", 100, " %")]
    if not point:
        return cells + ["no such head" if point is None else "never in view"] * len(AXES)
    return cells + [format_metric(point[axis], "error", 1, "") for axis in reversed(AXES)]


def format_metric(values: dict[str, Any], name: str, scale: int, unit: str) -> str:
    """Format a metric, that of the constant, and their difference with its interval."""
    digits = 1 if scale == 100 else 3
    own, constant = (f"{scale * values[key]:.{digits}f}{unit}" for key in (name, "constant"))
    difference, low, high = (f"{scale * value:+.{digits}f}" for value in (values["difference"], *values["interval"]))
    return f"{name} {own}, constant {constant}; {difference} ({low} to {high})"
