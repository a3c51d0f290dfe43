"""Gradient agreement over several batches: mean cosine tables with confidence intervals, and their files.

Shapes: L losses, N batches.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from rocket_hf.files import create_folder, write_text
from rocket_hf.heatmap import write_heatmap, write_table
from rocket_hf.training.vla.loss_gradients import agreement_metrics

from .bootstrap import bootstrap_mean


@dataclass
class ConfidenceInterval:
    """Mean with the ends of its bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass
class GradientAgreementSummary:
    """Mean cosine table (L, L) over batches with the ends of its bootstrap intervals, and summary metrics."""

    names: list[str]  # layer pairs as "STUDENT-TEACHER", then "action"
    mean: list[list[float]]
    low: list[list[float]]
    high: list[list[float]]
    metrics: dict[str, ConfidenceInterval]


def summarize_agreement(names: Sequence[str], tables: Tensor) -> GradientAgreementSummary:
    """Summarize the cosine tables (N, L, L) of several batches."""
    mean, low, high = bootstrap_mean(tables.double().cpu().numpy())
    metrics = {
        name: ConfidenceInterval(*(float(value) for value in bootstrap_mean(values.double().cpu().numpy())))
        for name, values in agreement_metrics(tables).items()
    }
    return GradientAgreementSummary(list(names), mean.tolist(), low.tolist(), high.tolist(), metrics)


def write_gradient_agreement(folder: Path, agreement: GradientAgreementSummary, about: Mapping[str, Any]) -> None:
    """Write gradients.json with all numbers, and gradients.csv and gradients.png with the mean table."""
    create_folder(folder)
    write_text(folder / "gradients.json", json.dumps(dict(about) | asdict(agreement), indent=1))
    table, names = np.array(agreement.mean), agreement.names
    write_table(folder / "gradients.csv", table, names, names, "loss")
    title, labels = "cosines between gradients", ("layer pair", "layer pair")
    write_heatmap(folder / "gradients.png", table, names, names, labels, title, limits=(-1.0, 1.0))
