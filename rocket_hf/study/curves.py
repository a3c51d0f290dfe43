"""The curves of a training run, from its journal, and their means."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocket_hf.training.journal import read_journal

POLICIES = ("untrained", "none", "rocket")  # of the demo
Curve = list[tuple[int, float]]  # by step


@dataclass
class Curves:
    """The action loss, the alignment loss of each layer pair, and how well the pairs' gradients agree."""

    action: Curve
    pairs: dict[str, Curve]
    agreement: Curve
    with_action: Curve


def read_curves(run: Path) -> Curves:
    records = read_journal(run / "journal.jsonl")
    pairs = sorted({name for record in records for name in record if name.startswith("alignment/")})
    return Curves(
        action=series(records, "action/flow_matching"),
        pairs={name.removeprefix("alignment/"): series(records, name) for name in pairs},
        agreement=series(records, "agreement/pairs"),
        with_action=series(records, "agreement/action"),
    )


def series(records: list[dict[str, Any]], name: str) -> Curve:
    return [(record["step"], record[name]) for record in records if name in record]


def start_of(curve: Curve) -> float:
    """The mean of the first tenth."""
    return level(curve[: tenth(curve)])


def end_of(curve: Curve) -> float:
    """The mean of the last tenth."""
    return level(curve[-tenth(curve) :])


def tenth(curve: Curve) -> int:
    return max(1, len(curve) // 10)


def level(curve: Curve) -> float:
    """The mean over the whole curve."""
    return mean([value for _, value in curve])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
