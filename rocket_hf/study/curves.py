"""Curves of a training run, read from its journal, and their means."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rocket_hf.training.journal import read_journal

POLICIES = ("untrained", "none", "rocket")  # policies of the demo
Curve = list[tuple[int, float]]  # (step, value)


@dataclass
class TrainingCurves:
    """Losses and gradient agreement of a run by step."""

    action: Curve
    pairs: dict[str, Curve]  # alignment loss of each layer pair
    agreement: Curve  # mean cosine of the gradients of two layer pairs
    with_action: Curve  # mean cosine of the gradients of a layer pair and of the action loss


def read_curves(run: Path) -> TrainingCurves:
    records = read_journal(run / "journal.jsonl")
    pairs = sorted({name for record in records for name in record if name.startswith("alignment/")})
    return TrainingCurves(
        action=series(records, "action/flow_matching"),
        pairs={name.removeprefix("alignment/"): series(records, name) for name in pairs},
        agreement=series(records, "agreement/pairs"),
        with_action=series(records, "agreement/action"),
    )


def series(records: list[dict[str, Any]], name: str) -> Curve:
    return [(record["step"], record[name]) for record in records if name in record]


def mean_loss_curve(records: list[dict[str, Any]], prefix: str) -> Curve:
    """Return the mean of the losses whose names start with `prefix`, for each record that has such a loss."""
    losses = [
        (record["step"], [value for name, value in record.items() if name.startswith(prefix)]) for record in records
    ]
    return [(step, mean(values)) for step, values in losses if values]


def initial_mean(curve: Curve) -> float:
    """Return the mean of the first tenth of a curve."""
    return curve_mean(curve[: tenth(curve)])


def final_mean(curve: Curve) -> float:
    """Return the mean of the last tenth of a curve."""
    return curve_mean(curve[-tenth(curve) :])


def tenth(curve: Curve) -> int:
    return max(1, len(curve) // 10)


def curve_mean(curve: Curve) -> float:
    return mean([value for _, value in curve])


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
