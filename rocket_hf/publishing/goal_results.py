"""What a card tells of an evaluation after goals, read from the report of `rocket-hf eval --env vizdoom`."""

import json
from pathlib import Path
from typing import Any

from ..evaluation.report import REPORT
from ..hub_cards.facts import Evaluation, GoalEvaluation, GoalRates

CHANCE = "random"


def read_goal_evaluation(path: Path) -> GoalEvaluation:
    path = path / REPORT if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        rates = [
            rates_of(f"every {steps} steps" if steps != "1" else "at every step", "this policy", counts)
            for steps, counts in values["refreshes"].items()
        ]
        rates.append(rates_of("", CHANCE, values[CHANCE]))
        return GoalEvaluation(values["suite"], values["settings"].get("max_steps"), rates)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no report of `rocket-hf eval --env vizdoom`: {error!r}") from error


def rates_of(shown: str, player: str, counts: dict[str, Any]) -> GoalRates:
    def rate(event: str) -> Evaluation:
        return Evaluation(f"{player} {shown}".strip(), counts[event]["count"], counts[event]["episodes"])

    return GoalRates(shown, player, rate("target"), rate("wrong"))
