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

# Columns of depth.csv. "low" and "high" are the ends of the bootstrap interval of "relative_error", "close" is the
# share of patches whose depth is within the factor `depth_probe.CLOSE`, and "selected" marks the selected layer.
COLUMNS = ("name", "kind", "layer", "relative_error", "low", "high", "close", "validation_error", "selected")


@dataclass
class DepthResult:
    """Depth errors of one model or constant baseline.

    The selected layer is the one with the lowest error on the validation episodes; all reported errors are those on the
    held-out episodes.
    """

    name: str
    kind: str  # RUN, UNTRAINED, TEACHER or CONSTANT
    errors: DepthErrors

    @property
    def error_per_episode(self) -> np.ndarray:
        """Return the relative error of the selected layer in each episode, (E,)."""
        return self.errors.relative[:, self.errors.selected_index]

    @property
    def selected_layer_error(self) -> float:
        """Return the relative error of the selected layer, averaged over the episodes."""
        return float(self.error_per_episode.mean())

    @property
    def selected_layer(self) -> int:
        return self.errors.layers[self.errors.selected_index]

    def summary(self) -> str:
        """Return the name, the error and the number of the selected layer as text."""
        if self.kind == CONSTANT:
            return f"{self.name} {self.selected_layer_error:.1%}"
        return f"{self.name} {self.selected_layer_error:.1%} (layer {self.selected_layer})"

    def rows(self) -> list[dict[str, Any]]:
        """Return one row of depth.csv per layer, with a bootstrap interval over the episodes."""
        errors, selected = self.errors, self.selected_layer
        mean, low, high = bootstrap_mean(errors.relative)
        close = errors.close.mean(axis=0)
        values = zip(errors.layers, mean, low, high, close, errors.validation_errors, strict=True)
        return [
            dict(zip(COLUMNS, (self.name, self.kind, *map(rounded_number, row), row[0] == selected), strict=True))
            for row in values
        ]


def relative_layer_positions(layers: Sequence[int]) -> list[float]:
    """Return the position of each layer in its model, from 0 (embeddings) to 1 (last layer)."""
    return [layer / max(1, *layers) for layer in layers]


def rounded_number(value: Any) -> int | float:
    """Convert a NumPy scalar to a number that JSON can store, with six decimals."""
    return value if isinstance(value, int) else round(float(value), 6)


@dataclass
class DepthErrorDifference:
    """Mean difference between the errors of two models on the same episodes, each at its selected layer."""

    first: str
    second: str
    mean: float  # error of `first` minus error of `second`: negative if `first` is better
    low: float  # ends of the bootstrap interval of the mean
    high: float
    episodes: int  # number of held-out episodes

    @classmethod
    def between(cls, first: DepthResult, second: DepthResult) -> "DepthErrorDifference":
        """Compare two results episode by episode."""
        assert first.errors.episodes == second.errors.episodes, "both results must cover the same episodes"
        differences = first.error_per_episode - second.error_per_episode
        mean, low, high = map(float, bootstrap_mean(differences))
        return cls(first.name, second.name, mean, low, high, len(differences))

    def sentence(self) -> str:
        """Return the difference in percentage points, its interval and the conclusion."""
        low, high = 100 * self.low, 100 * self.high
        points = f"{100 * self.mean:+.2f} points (95 % of resampled means in {low:+.2f} to {high:+.2f}, "
        points += f"{self.episodes} episodes)"
        if self.low <= 0 <= self.high:
            conclusion = "the interval contains zero, so the difference is not significant"
        else:
            conclusion = f"so depth can be predicted better from {self.first if self.high < 0 else self.second}"
        return f"{self.first} against {self.second}: {points}, {conclusion}"


def compare_results(results: Sequence[DepthResult]) -> list[DepthErrorDifference]:
    """Return the differences of each later run to the first run, then of each run to each baseline.

    Baselines are the untrained policies and the constants.
    """
    runs = [result for result in results if result.kind == RUN]
    baselines = [result for result in results if result.kind in (UNTRAINED, CONSTANT)]
    comparisons = [DepthErrorDifference.between(run, runs[0]) for run in runs[1:]]
    return comparisons + [DepthErrorDifference.between(run, baseline) for run in runs for baseline in baselines]


def summarize_results(results: Sequence[DepthResult]) -> str:
    """Return one sentence with the error of each model and the comparisons that matter most.

    They are the differences of the later runs to the first run, or of a single run to its untrained policy (to a
    constant if there is none), and of the last run to the constant per patch, whose error is that of a prediction from
    the position in the image alone.
    """
    comparisons, runs = compare_results(results), [result for result in results if result.kind == RUN]
    # `compare_results` returns the comparisons with the first run first, then those with the untrained policy.
    selected = comparisons[: max(1, len(runs) - 1)]
    names = (runs[-1].name, CONSTANT_PER_PATCH)
    selected += [each for each in comparisons if (each.first, each.second) == names and each not in selected]
    errors = ", ".join(result.summary() for result in results)
    return f"relative depth error on held-out episodes: {errors}; {'; '.join(each.sentence() for each in selected)}."


def write_depth_tables(folder: Path, results: Sequence[DepthResult], settings: Mapping[str, Any]) -> None:
    """Write depth.csv with one row per model and layer, and depth.json with all results and the `settings`."""
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
