"""What a card tells of an evaluation after goals, read from the report of `rocket-hf eval --env vizdoom`."""

import json
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError
from rocket_hf.evaluation.report import REPORT
from rocket_hf.hub_cards.facts import Evaluation, Rocket2Evaluation, Rocket2Rates

CHANCE = "random"


def read_rocket2_evaluation(path: Path) -> Rocket2Evaluation:
    path = path / REPORT if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        rates = [
            rates_of(f"every {steps} steps" if steps != "1" else "at every step", "this policy", counts)
            for steps, counts in values["refreshes"].items()
        ]
        rates.append(rates_of("", CHANCE, values[CHANCE]))
        return Rocket2Evaluation(values["suite"], values["settings"].get("max_steps"), rates)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no report of `rocket-hf eval --env vizdoom`: {error!r}") from error


def rates_of(shown: str, player: str, counts: dict[str, Any]) -> Rocket2Rates:
    def rate(event: str) -> Evaluation:
        return Evaluation(f"{player} {shown}".strip(), counts[event]["count"], counts[event]["episodes"])

    return Rocket2Rates(shown, player, rate("target"), rate("wrong"))
