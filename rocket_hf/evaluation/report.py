"""Report of an evaluation: JSON for programs and model cards, Markdown for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError
from rocket_hf.files import create_folder, write_json, write_text
from rocket_hf.hub_cards.facts import Evaluation

from .rollouts import EpisodeResult
from .statistics import PairedComparison, format_rate, wilson_interval

REPORT, TEXT = "evaluation.json", "evaluation.md"


@dataclass(frozen=True)
class PolicyIdentity:
    """Name, Hub commit and content hash of an evaluated policy."""

    name: str
    revision: str | None
    fingerprint: str  # hash of weights and processor, see identity.py


@dataclass(frozen=True)
class EvaluationResult:
    """All episodes of one policy."""

    policy: PolicyIdentity
    episodes: Sequence[EpisodeResult]

    def of_task(self, task: str) -> list[EpisodeResult]:
        return [episode for episode in self.episodes if episode.task == task]

    def summary(self) -> dict[str, Any]:
        tasks = dict.fromkeys(episode.task for episode in self.episodes)
        return {
            "policy": asdict(self.policy),
            "tasks": {task: success_statistics(self.of_task(task)) for task in tasks},
            "overall": success_statistics(self.episodes),
            "episodes": [asdict(episode) for episode in self.episodes],
        }


@dataclass(frozen=True)
class EvaluationReport:
    """Results of one policy, or of two on the same starts, with the settings and versions they depend on."""

    suite: str
    first: EvaluationResult
    second: EvaluationResult | None
    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        values = {"suite": self.suite, "settings": self.settings, "versions": self.versions, **self.first.summary()}
        if self.second is not None:
            values |= {"against": self.second.summary(), "comparison": self.comparison_values(self.first.episodes)}
            values["comparison"]["tasks"] = {
                task: self.comparison_values(self.first.of_task(task)) for task in values["tasks"]
            }
        return values

    def comparison_values(self, episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
        return self.compare(episodes).as_dict(*self.names)

    def compare(self, episodes: Sequence[EpisodeResult]) -> PairedComparison:
        """Compare these episodes of the first policy with the second policy's episodes from the same starts."""
        assert self.second is not None
        theirs = {(episode.task, episode.seed): episode.success for episode in self.second.episodes}
        return PairedComparison.from_outcomes(
            [episode.success for episode in episodes], [theirs[episode.task, episode.seed] for episode in episodes]
        )

    @property
    def names(self) -> tuple[str, str]:
        assert self.second is not None
        return self.first.policy.name, self.second.policy.name

    def as_markdown(self) -> str:
        results = [self.first, *([self.second] if self.second else [])]
        lines = [f"# {self.first.policy.name} in {self.suite}", "", *success_table(results), ""]
        if self.second is not None:
            lines += [self.compare(self.first.episodes).sentence(*self.names), ""]
        lines += [*(f"- {describe_policy(result.policy)}" for result in results), *settings_lines(self.settings)]
        lines.append(versions_line(self.versions))
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> None:
        create_folder(folder)
        write_json(folder / REPORT, self.as_dict())
        write_text(folder / TEXT, self.as_markdown())


def success_statistics(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Return the success rate with its interval, and the mean number of steps of successful episodes."""
    successes = [episode for episode in episodes if episode.success]
    return {
        "successes": len(successes),
        "episodes": len(episodes),
        "rate": len(successes) / len(episodes),
        "interval": list(wilson_interval(len(successes), len(episodes))),
        "mean_steps_of_successes": sum(each.steps for each in successes) / len(successes) if successes else None,
        "max_steps": max(episode.max_steps for episode in episodes),
    }


def success_table(results: Sequence[EvaluationResult]) -> list[str]:
    """Return the lines of a Markdown table with a row for each task and a column for each policy."""
    names = [result.policy.name for result in results]
    lines = [f"| task | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for task in dict.fromkeys(episode.task for episode in results[0].episodes):
        lines.append(f"| {task} | {' | '.join(format_success_rate(result.of_task(task)) for result in results)} |")
    return [*lines, f"| **all** | {' | '.join(format_success_rate(result.episodes) for result in results)} |"]


def format_success_rate(episodes: Sequence[EpisodeResult]) -> str:
    return format_rate(sum(episode.success for episode in episodes), len(episodes))


def describe_policy(policy: PolicyIdentity) -> str:
    revision = f" at {policy.revision}" if policy.revision else ""
    return f"{policy.name}{revision}: fingerprint {policy.fingerprint[:12]}"


def settings_lines(settings: dict[str, Any]) -> list[str]:
    lines = [f"- {name.replace('_', ' ')}: {value}" for name, value in settings.items()]
    return [*lines, "- intervals: Wilson's, at 95 %"]


def versions_line(versions: dict[str, str]) -> str:
    return "- run with " + ", ".join(f"{name} {version}" for name, version in versions.items())


def read_report(path: Path) -> dict[str, Any]:
    """Read a report of `rocket-hf eval` from its folder or its JSON file."""
    path = path / REPORT if path.is_dir() else path
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read the report {path} ({error.strerror}): give a folder that `rocket-hf eval --out` wrote"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path} is not a report of `rocket-hf eval`: {error}; write it again with `rocket-hf eval --out`"
        ) from error


def read_evaluation(path: Path) -> tuple[Evaluation, str]:
    """Read the success rate for a model card, and the fingerprint of the evaluated policy."""
    values = read_report(path)
    try:
        overall = values["overall"]
        return Evaluation(values["suite"], overall["successes"], overall["episodes"]), values["policy"]["fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a report of `rocket-hf eval`: {error!r}; write it again with `rocket-hf eval --out`"
        ) from error
