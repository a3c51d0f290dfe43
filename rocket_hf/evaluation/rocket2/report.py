"""What an evaluation after goals found, as JSON for programs and cards and as Markdown for people.

Everything is told by `refresh`, the steps after which the goal was shown anew, and beside what chance does.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rocket_hf.files import write_json, write_text
from rocket_hf.sims.vizdoom.world import Event

from ..report import REPORT, TEXT, Identity, described, settings_lines
from ..statistics import Comparison, rate_with_interval, wilson
from .rollouts import Episode, Run
from .visibility import AXES, sight

SUITE, CHANCE = "vizdoom", "random"


@dataclass(frozen=True)
class Result:
    policy: Identity
    runs: dict[int, Run]  # by refresh

    def summary(self, chance: Run) -> dict[str, Any]:
        name = self.policy.name
        return {
            "policy": asdict(self.policy),
            "refreshes": {
                str(refresh): counted(run)
                | {"sight": sight(run.episodes), f"against_{CHANCE}": compared(run, chance, name, CHANCE)}
                for refresh, run in self.runs.items()
            },
        }

    @property
    def speed(self) -> dict[str, dict[str, float]]:
        """Other than all the rest, never twice the same."""
        return {
            str(refresh): {
                "steps_per_second": run.steps_per_second,
                "seconds": run.seconds,
                "seconds_with_world": run.seconds_in_all,
            }
            for refresh, run in self.runs.items()
        }


@dataclass(frozen=True)
class Rocket2EvaluationReport:
    first: Result
    second: Result | None
    chance: Run
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """`overall`, which goes on a card, is of the rarest goals."""
        values = {"suite": SUITE, "settings": self.settings, "versions": self.versions}
        values |= self.first.summary(self.chance) | {"overall": overall(self.first), CHANCE: counted(self.chance)}
        if self.second is not None:
            values["against"] = self.second.summary(self.chance) | {"overall": overall(self.second)}
            names = self.first.policy.name, self.second.policy.name
            values["comparison"] = {
                str(refresh): compared(run, self.second.runs[refresh], *names)
                for refresh, run in self.first.runs.items()
            }
        return values | {"speed": {result.policy.name: result.speed for result in self.results}}

    @property
    def results(self) -> list[Result]:
        return [self.first, *([self.second] if self.second else [])]

    def as_markdown(self) -> str:
        rarest = max(self.first.runs)
        verdict = compare(self.first.runs[rarest], self.chance, "target").sentence(self.first.policy.name, CHANCE)
        lines = [f"# {self.first.policy.name} in {SUITE}", "", *self.rates(), ""]
        lines += ["Differences on the same starts, in points, with their intervals and exact McNemar's p:", ""]
        lines += [*self.differences(), "", f"With the goal shown {shown(rarest)}, {verdict}", ""]
        lines += ["What the policy says of its goal while it acts, against the best constant:", ""]
        lines += [*self.sights(), ""]
        lines += [*(f"- {described(result.policy)}" for result in self.results), *settings_lines(self.settings)]
        lines.append("- steps a second: of all episodes together, in the policy alone, without the world")
        lines.append("- run with " + ", ".join(f"{name} {version}" for name, version in self.versions.items()))
        return "\n".join(lines) + "\n"

    def rates(self) -> list[str]:
        lines = ["| goal shown | player | came to the target | to a wrong object | steps a second |", "|---" * 5 + "|"]
        for refresh in self.first.runs:
            for result in self.results:
                run = result.runs[refresh]
                lines.append(rates_row(shown(refresh), result.policy.name, run) + f" {run.steps_per_second:.0f} |")
        return [*lines, rates_row("", CHANCE, self.chance) + " |"]

    def differences(self) -> list[str]:
        lines = ["| goal shown | | came to the target | to a wrong object |", "|---" * 4 + "|"]
        for refresh in self.first.runs:
            for first, second, name in self.pairs(refresh):
                cells = (points(compare(first, second, event)) for event in ("target", "wrong"))
                lines.append(f"| {shown(refresh)} | {name} | {' | '.join(cells)} |")
        return lines

    def pairs(self, refresh: int) -> list[tuple[Run, Run, str]]:
        pairs = [(result.runs[refresh], self.chance, f"{result.policy.name} - {CHANCE}") for result in self.results]
        if self.second is not None:
            names = f"{self.first.policy.name} - {self.second.policy.name}"
            pairs.append((self.first.runs[refresh], self.second.runs[refresh], names))
        return pairs

    def sights(self) -> list[str]:
        lines = ["| goal shown | policy | in view or not | where, x | where, y |", "|---" * 5 + "|"]
        for refresh in self.first.runs:
            for result in self.results:
                cells = sight_cells(sight(result.runs[refresh].episodes))
                lines.append(f"| {shown(refresh)} | {result.policy.name} | {' | '.join(cells)} |")
        return lines

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / REPORT, self.as_dict())
        write_text(folder / TEXT, self.as_markdown())


def counted(run: Run) -> dict[str, Any]:
    won = [episode.steps for episode in run.episodes if episode.event == "target"]
    return {
        "target": share(run.episodes, "target"),
        "wrong": share(run.episodes, "wrong"),
        "neither": share(run.episodes, "none"),
        "mean_steps_of_successes": sum(won) / len(won) if won else None,
        "episodes": [told(episode) for episode in run.episodes],
    }


def share(episodes: Sequence[Episode], event: Event) -> dict[str, Any]:
    count = count_of(episodes, event)
    interval = list(wilson(count, len(episodes)))
    return {"count": count, "episodes": len(episodes), "rate": count / len(episodes), "interval": interval}


def count_of(episodes: Sequence[Episode], event: Event) -> int:
    return sum(episode.event == event for episode in episodes)


def told(episode: Episode) -> dict[str, Any]:
    return {
        "seed": episode.start.seed,
        "target": episode.start.target,
        "kind": episode.kind,
        "event": episode.event,
        "steps": episode.steps,
    }


def overall(result: Result) -> dict[str, Any]:
    rarest = max(result.runs)
    values = share(result.runs[rarest].episodes, "target")
    return {"refresh": rarest, "successes": values.pop("count"), **values}


def compare(first: Run, second: Run, event: Event) -> Comparison:
    assert [episode.start for episode in first.episodes] == [episode.start for episode in second.episodes]
    return Comparison.of(*([episode.event == event for episode in run.episodes] for run in (first, second)))


def compared(first: Run, second: Run, *names: str) -> dict[str, Any]:
    wrong = compare(first, second, "wrong").as_dict(*names)
    del wrong["sentence"]  # which is about successes
    return {"target": compare(first, second, "target").as_dict(*names), "wrong": wrong}


def shown(refresh: int) -> str:
    return "at every step" if refresh == 1 else f"every {refresh} steps"


def rates_row(when: str, name: str, run: Run) -> str:
    counts = (count_of(run.episodes, event) for event in ("target", "wrong"))
    cells = (rate_with_interval(count, len(run.episodes)) for count in counts)
    return f"| {when} | {name} | {' | '.join(cells)} |"


def points(comparison: Comparison) -> str:
    low, high = comparison.interval
    interval = f"{100 * low:+.1f} to {100 * high:+.1f}"
    return f"{100 * comparison.difference:+.1f} ({interval}), p = {comparison.p_value:.3g}"


def sight_cells(values: dict[str, Any]) -> list[str]:
    """In view or not; x; y."""
    seen, where = values["visibility"], values["point"]
    cells = ["not kept" if seen is None else beside(seen, "accuracy", 100, " %")]
    if not where:
        return cells + ["not kept" if where is None else "never in view"] * len(AXES)
    return cells + [beside(where[axis], "error", 1, "") for axis in reversed(AXES)]


def beside(values: dict[str, Any], name: str, scale: int, unit: str) -> str:
    """A figure beside the constant's, and the difference of the two with its interval."""
    digits = 1 if scale == 100 else 3
    own, constant = (f"{scale * values[key]:.{digits}f}{unit}" for key in (name, "constant"))
    difference, low, high = (f"{scale * value:+.{digits}f}" for value in (values["difference"], *values["interval"]))
    return f"{name} {own}, of the constant {constant}; {difference} ({low} to {high})"
