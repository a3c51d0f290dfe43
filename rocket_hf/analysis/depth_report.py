"""Results of depth probes as tables, comparisons between models and a one-sentence summary.

Shapes: E held-out episodes, L layers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rocket_hf.files import write_csv, write_text

from .bootstrap import bootstrap_mean
from .depth_probe import CONSTANT_PER_PATCH, DepthErrors

RUN, UNTRAINED, TEACHER, CONSTANT = "run", "untrained", "teacher", "constant"
COLUMNS = ("name", "kind", "layer", "relative_error", "low", "high", "close", "validation_error", "selected")


@dataclass
class DepthResult:
    """Depth errors of one model or baseline."""

    name: str
    kind: str  # RUN, UNTRAINED, TEACHER or CONSTANT
    errors: DepthErrors

    @property
    def error_per_episode(self) -> np.ndarray:
        """Return the relative error of the selected layer in each episode, (E,)."""
        return self.errors.relative[:, self.errors.best]

    @property
    def best_error(self) -> float:
        return float(self.error_per_episode.mean())

    @property
    def best_layer(self) -> int:
        return self.errors.layers[self.errors.best]

    def summary(self) -> str:
        if self.kind == CONSTANT:
            return f"{self.name} {self.best_error:.1%}"
        return f"{self.name} {self.best_error:.1%} (layer {self.best_layer})"

    def rows(self) -> list[dict[str, Any]]:
        """Return one table row per layer, with a bootstrap interval over the episodes."""
        errors = self.errors
        mean, low, high = bootstrap_mean(errors.relative)
        close = errors.close.mean(axis=0)
        values = zip(errors.layers, mean, low, high, close, errors.validation_errors, strict=True)
        return [
            dict(zip(COLUMNS, (self.name, self.kind, *map(json_number, row), row[0] == self.best_layer), strict=True))
            for row in values
        ]


def relative_depths(layers: Sequence[int]) -> list[float]:
    """Return the position of each layer between 0 (embeddings) and 1 (last layer)."""
    return [layer / max(1, *layers) for layer in layers]


def json_number(value: Any) -> int | float:
    return value if isinstance(value, int) else round(float(value), 6)


@dataclass
class DepthErrorDifference:
    """Mean difference between the errors of two models on the same episodes, each at its selected layer."""

    first: str
    second: str
    mean: float
    low: float
    high: float
    episodes: int

    @classmethod
    def between(cls, first: DepthResult, second: DepthResult) -> "DepthErrorDifference":
        assert first.errors.episodes == second.errors.episodes, "both results must cover the same episodes"
        differences = first.error_per_episode - second.error_per_episode
        mean, low, high = map(float, bootstrap_mean(differences))
        return cls(first.name, second.name, mean, low, high, len(differences))

    def sentence(self) -> str:
        low, high = 100 * self.low, 100 * self.high
        points = f"{100 * self.mean:+.2f} points (95 % of resampled means in {low:+.2f} to {high:+.2f}, "
        points += f"{self.episodes} episodes)"
        if self.low <= 0 <= self.high:
            conclusion = "the interval contains zero, so the difference is not significant"
        else:
            conclusion = f"so depth can be predicted better from {self.first if self.high < 0 else self.second}"
        return f"{self.first} against {self.second}: {points}, {conclusion}"


def compare_results(results: Sequence[DepthResult]) -> list[DepthErrorDifference]:
    """Compare each later run with the first run, then each run with the untrained policies and the constants."""
    runs = [result for result in results if result.kind == RUN]
    baselines = [result for result in results if result.kind in (UNTRAINED, CONSTANT)]
    comparisons = [DepthErrorDifference.between(run, runs[0]) for run in runs[1:]]
    return comparisons + [DepthErrorDifference.between(run, baseline) for run in runs for baseline in baselines]


def summarize_results(results: Sequence[DepthResult]) -> str:
    """Answer in one sentence whether the policies have learned 3D.

    The comparisons are with the first run, or with the untrained policy if there is only one run, and with the constant
    per patch, which measures what the position in the image alone predicts.
    """
    comparisons, runs = compare_results(results), [result for result in results if result.kind == RUN]
    selected = comparisons[: max(1, len(runs) - 1)]
    last_run = (runs[-1].name, CONSTANT_PER_PATCH)
    selected += [each for each in comparisons if (each.first, each.second) == last_run and each not in selected]
    errors = ", ".join(result.summary() for result in results)
    return f"relative depth error on held-out episodes: {errors}; {'; '.join(each.sentence() for each in selected)}."


def write_depth_tables(folder: Path, results: Sequence[DepthResult], settings: Mapping[str, Any]) -> None:
    """Write depth.csv with one row per layer, and depth.json with all results."""
    rows = [row for result in results for row in result.rows()]
    write_csv(folder / "depth.csv", COLUMNS, (row.values() for row in rows))
    content = dict(settings) | {
        "summary": summarize_results(results),
        "differences": [vars(difference) for difference in compare_results(results)],
        "layers": rows,
        "episodes": results[0].errors.episodes,
        "errors_by_episode": {result.name: result.errors.relative.round(6).tolist() for result in results},
    }
    write_text(folder / "depth.json", json.dumps(content, indent=1))
