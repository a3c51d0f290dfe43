"""Gradient agreement over several batches: mean cosine tables with bootstrap intervals, and the files that report them.

Shapes: L losses, N batches.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rocket_hf.files import write_text
from rocket_hf.heatmap import write_heatmap, write_table
from rocket_hf.training.vla.loss_gradients import figures_of

RESAMPLES, CONFIDENCE = 2000, 0.95


@dataclass
class Interval:
    mean: float
    low: float
    high: float


@dataclass
class Agreement:
    """Mean tables over batches, with what a bootstrap over the batches says of each number."""

    names: list[str]  # of the layer pairs, "STUDENT-TEACHER", and "action"
    mean: list[list[float]]
    low: list[list[float]]
    high: list[list[float]]
    figures: dict[str, Interval]


def bootstrapped(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean over the first axis, and the ends of its percentile interval."""
    random = np.random.default_rng(seed)
    means = np.stack([
        values[random.integers(len(values), size=len(values))].mean(axis=0) for _ in range(RESAMPLES)
    ])  # fmt: skip
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return values.mean(axis=0), low, high


def agreement_of(names: Sequence[str], tables: Tensor) -> Agreement:
    """Of the tables (N, L, L) of several batches."""
    mean, low, high = bootstrapped(tables.double().cpu().numpy())
    figures = {
        name: Interval(*(float(value) for value in bootstrapped(numbers.double().cpu().numpy())))
        for name, numbers in figures_of(tables).items()
    }
    return Agreement(list(names), mean.tolist(), low.tolist(), high.tolist(), figures)


def write_agreement(folder: Path, agreement: Agreement, about: Mapping[str, Any]) -> None:
    """gradients.json with all numbers, gradients.csv and gradients.png with the mean table."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "gradients.json", json.dumps(dict(about) | asdict(agreement), indent=1))
    table, names = np.array(agreement.mean), agreement.names
    write_table(folder / "gradients.csv", table, names, names, "loss")
    title, labels = "cosines between gradients", ("layer pair", "layer pair")
    write_heatmap(folder / "gradients.png", table, names, names, labels, title, limits=(-1.0, 1.0))
