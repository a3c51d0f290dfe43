"""The curves of a training run, from its journal."""

from dataclasses import dataclass
from pathlib import Path

from rocket_hf.training.journal import read_journal

POLICIES = ("untrained", "none", "rocket")  # of the demo


@dataclass
class Curves:
    """By step: the action loss, the alignment loss of each layer pair, and how well the pairs' gradients agree."""

    action: list[tuple[int, float]]
    pairs: dict[str, list[tuple[int, float]]]
    agreement: list[tuple[int, float]]
    with_action: list[tuple[int, float]]


def read_curves(run: Path) -> Curves:
    records = read_journal(run / "journal.jsonl")

    def series(name: str) -> list[tuple[int, float]]:
        return [(record["step"], record[name]) for record in records if name in record]

    pairs = sorted({name for record in records for name in record if name.startswith("alignment/")})
    return Curves(
        action=series("action/flow_matching"),
        pairs={name.removeprefix("alignment/"): series(name) for name in pairs},
        agreement=series("agreement/pairs"),
        with_action=series("agreement/action"),
    )
