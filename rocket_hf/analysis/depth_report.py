"""What a depth probe found, as numbers, as two pictures and as one sentence."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rocket_hf.analysis.gradient_report import bootstrapped
from rocket_hf.files import write_csv, write_text

from .depth_probe import PLACE, DepthErrors

RUN, UNTRAINED, TEACHER, CONSTANT = "run", "untrained", "teacher", "constant"
COLUMNS = ("name", "kind", "layer", "relative_error", "low", "high", "close", "choice_error", "chosen")


@dataclass
class Measured:
    name: str
    kind: str  # RUN, UNTRAINED, TEACHER or CONSTANT
    errors: DepthErrors

    @property
    def by_episode(self) -> np.ndarray:
        """(E,), of the layer that was chosen."""
        return self.errors.relative[:, self.errors.best]

    @property
    def best_error(self) -> float:
        return float(self.by_episode.mean())

    @property
    def best_layer(self) -> int:
        return self.errors.layers[self.errors.best]

    def phrase(self) -> str:
        if self.kind == CONSTANT:
            return f"{self.name} {self.best_error:.1%}"
        return f"{self.name} {self.best_error:.1%} (layer {self.best_layer})"

    def rows(self) -> list[dict[str, Any]]:
        """One for each layer, with what a bootstrap over episodes says of its error."""
        errors = self.errors
        mean, low, high = bootstrapped(errors.relative)
        close = errors.close.mean(axis=0)
        values = zip(errors.layers, mean, low, high, close, errors.choice_errors, strict=True)
        return [
            dict(zip(COLUMNS, (self.name, self.kind, *map(plain, row), row[0] == self.best_layer), strict=True))
            for row in values
        ]


def plain(value: Any) -> int | float:
    return value if isinstance(value, int) else round(float(value), 6)


@dataclass
class Difference:
    """Of the errors of a first and a second at the layer chosen for each, on the same episodes."""

    first: str
    second: str
    mean: float
    low: float
    high: float
    episodes: int

    @classmethod
    def of(cls, first: Measured, second: Measured) -> "Difference":
        assert first.errors.episodes == second.errors.episodes, "episodes are the same for all"
        differences = first.by_episode - second.by_episode
        mean, low, high = map(float, bootstrapped(differences))
        return cls(first.name, second.name, mean, low, high, len(differences))

    def sentence(self) -> str:
        low, high = 100 * self.low, 100 * self.high
        points = f"{100 * self.mean:+.2f} points (95 % of resampled means in {low:+.2f} to {high:+.2f}, "
        points += f"{self.episodes} episodes)"
        if self.low <= 0 <= self.high:
            said = "which contains zero, so these episodes do not tell them apart"
        else:
            said = f"so {self.first if self.high < 0 else self.second} tells more of depth"
        return f"{self.first} against {self.second}: {points}, {said}"


def differences(measured: Sequence[Measured]) -> list[Difference]:
    """Each later run against the first; then each run against the policies they started from and the constants."""
    runs = [each for each in measured if each.kind == RUN]
    others = [each for each in measured if each.kind in (UNTRAINED, CONSTANT)]
    found = [Difference.of(run, runs[0]) for run in runs[1:]]
    return found + [Difference.of(run, other) for run in runs for other in others]


def answer(measured: Sequence[Measured]) -> str:
    """To: has the policy learned 3D? More than the first of the runs, or than what it started from; and more than is
    known of depth by the place in the picture alone."""
    told = ", ".join(each.phrase() for each in measured)
    found, runs = differences(measured), [each for each in measured if each.kind == RUN]
    asked = found[: max(1, len(runs) - 1)]
    asked += [each for each in found if (each.first, each.second) == (runs[-1].name, PLACE) and each not in asked]
    decided = "; ".join(each.sentence() for each in asked)
    return f"depth is read off held-out episodes with a relative error of {told}: {decided}."


def write_errors(folder: Path, measured: Sequence[Measured], about: Mapping[str, Any]) -> None:
    """depth.csv, a row for each layer, and depth.json with all that is known."""
    rows = [row for each in measured for row in each.rows()]
    write_csv(folder / "depth.csv", COLUMNS, (row.values() for row in rows))
    found = dict(about) | {
        "answer": answer(measured),
        "differences": [vars(each) for each in differences(measured)],
        "layers": rows,
        "episodes": measured[0].errors.episodes,
        "errors_by_episode": {each.name: each.errors.relative.round(6).tolist() for each in measured},
    }
    write_text(folder / "depth.json", json.dumps(found, indent=1))
