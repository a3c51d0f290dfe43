"""What an evaluation found, as JSON for programs and cards and as Markdown for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError
from rocket_hf.files import write_json, write_text
from rocket_hf.hub_cards.facts import Evaluation

from .rollouts import Episode
from .statistics import Comparison, rate_with_interval, wilson

REPORT, TEXT = "evaluation.json", "evaluation.md"


@dataclass(frozen=True)
class Identity:
    """Which policy it was: by name, by the commit that it came from, and by what it is."""

    name: str
    revision: str | None
    fingerprint: str  # of its weights and its processor: see identity.py


@dataclass(frozen=True)
class Result:
    policy: Identity
    episodes: Sequence[Episode]

    def of(self, task: str) -> list[Episode]:
        return [episode for episode in self.episodes if episode.task == task]

    def summary(self) -> dict[str, Any]:
        tasks = dict.fromkeys(episode.task for episode in self.episodes)
        return {
            "policy": asdict(self.policy),
            "tasks": {task: counted(self.of(task)) for task in tasks},
            "overall": counted(self.episodes),
            "episodes": [asdict(episode) for episode in self.episodes],
        }


@dataclass(frozen=True)
class Report:
    suite: str
    first: Result
    second: Result | None
    settings: dict[str, Any]  # what the rollouts were made with
    versions: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        values = {"suite": self.suite, "settings": self.settings, "versions": self.versions, **self.first.summary()}
        if self.second is not None:
            values |= {"against": self.second.summary(), "comparison": self.compared(list(self.first.episodes))}
            values["comparison"]["tasks"] = {task: self.compared(self.first.of(task)) for task in values["tasks"]}
        return values

    def compared(self, episodes: Sequence[Episode]) -> dict[str, Any]:
        """The first policy with the second on the starts of these episodes."""
        return self.comparison(episodes).as_dict(*self.names)

    def comparison(self, episodes: Sequence[Episode]) -> Comparison:
        assert self.second is not None
        theirs = {(episode.task, episode.seed): episode.success for episode in self.second.episodes}
        return Comparison.of(
            [episode.success for episode in episodes], [theirs[episode.task, episode.seed] for episode in episodes]
        )

    @property
    def names(self) -> tuple[str, str]:
        assert self.second is not None
        return self.first.policy.name, self.second.policy.name

    def as_markdown(self) -> str:
        results = [self.first, *([self.second] if self.second else [])]
        lines = [f"# {self.first.policy.name} in {self.suite}", "", *table(results), ""]
        if self.second is not None:
            lines += [self.comparison(self.first.episodes).sentence(*self.names), ""]
        lines += [*(f"- {described(result.policy)}" for result in results), *settings_lines(self.settings)]
        lines.append("- run with " + ", ".join(f"{name} {version}" for name, version in self.versions.items()))
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / REPORT, self.as_dict())
        write_text(folder / TEXT, self.as_markdown())


def counted(episodes: Sequence[Episode]) -> dict[str, Any]:
    """How many succeeded, with the interval of the rate; and how many steps those took in the mean."""
    won = [episode for episode in episodes if episode.success]
    return {
        "successes": len(won),
        "episodes": len(episodes),
        "rate": len(won) / len(episodes),
        "interval": list(wilson(len(won), len(episodes))),
        "mean_steps_of_successes": sum(episode.steps for episode in won) / len(won) if won else None,
        "max_steps": max(episode.max_steps for episode in episodes),
    }


def table(results: Sequence[Result]) -> list[str]:
    """A line a task, a column a policy."""
    names = [result.policy.name for result in results]
    lines = [f"| task | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for task in dict.fromkeys(episode.task for episode in results[0].episodes):
        lines.append(f"| {task} | {' | '.join(cell(result.of(task)) for result in results)} |")
    return [*lines, f"| **all** | {' | '.join(cell(result.episodes) for result in results)} |"]


def cell(episodes: Sequence[Episode]) -> str:
    return rate_with_interval(sum(episode.success for episode in episodes), len(episodes))


def described(policy: Identity) -> str:
    revision = f" at {policy.revision}" if policy.revision else ""
    return f"{policy.name}{revision}: fingerprint {policy.fingerprint[:12]}"


def settings_lines(settings: dict[str, Any]) -> list[str]:
    spoken = {name.replace("_", " "): value for name, value in settings.items()}
    return [f"- {name}: {value}" for name, value in spoken.items()] + ["- intervals: Wilson's, at 95 %"]


def read_evaluation(path: Path) -> tuple[Evaluation, str]:
    """What a card tells of a report, and the fingerprint of the policy that it is of."""
    path = path / REPORT if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        overall = values["overall"]
        return Evaluation(values["suite"], overall["successes"], overall["episodes"]), values["policy"]["fingerprint"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no report of `rocket-hf eval`: {error!r}") from error
