"""Accuracy of a policy's predictions whether and where its goal is in view, compared with constant predictions.

The constants are the best ones for the same steps: always or never in view, and the median position of the goal. Steps
of one episode are similar, so the 95 % intervals resample episodes (bootstrap), not steps.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .episode import Rocket2Episode

BOOTSTRAP_SAMPLES = 2_000
AXES = ("y", "x")


def visibility_metrics(episodes: Sequence[Rocket2Episode]) -> dict[str, Any]:
    """Return the metrics of each head: None if the policy does not have it, {} if the goal is never in view."""
    records = [record for episode in episodes for record in episode.visibility]
    output = records[0].output
    owners = np.repeat(np.arange(len(episodes)), [len(episode.visibility) for episode in episodes])
    is_visible = np.array([record.is_visible for record in records])
    return {
        "steps": len(records),
        "visible_steps": int(is_visible.sum()),
        "visibility": None if output.visibility is None else visibility_accuracy(episodes, is_visible, owners),
        "point": None if output.point is None else point_errors(episodes, is_visible, owners),
    }


def visibility_accuracy(
    episodes: Sequence[Rocket2Episode], is_visible: np.ndarray, owners: np.ndarray
) -> dict[str, Any]:
    predicted = np.array([record.output.visibility for episode in episodes for record in episode.visibility]) > 0.5
    is_correct, constant_is_correct = predicted == is_visible, is_visible == (is_visible.mean() > 0.5)
    return compare_with_constant("accuracy", is_correct.astype(float), constant_is_correct.astype(float), owners)


def point_errors(episodes: Sequence[Rocket2Episode], is_visible: np.ndarray, owners: np.ndarray) -> dict[str, Any]:
    """Return the mean absolute errors along each axis, as fractions of the image, at steps with a visible goal."""
    if not is_visible.any():
        return {}
    records = [record for episode in episodes for record in episode.visibility if record.is_visible]
    true = np.array([record.point for record in records])
    predicted = np.array([record.output.point for record in records])
    errors, constant_errors = np.abs(predicted - true), np.abs(np.median(true, axis=0) - true)
    return {
        axis: compare_with_constant("error", errors[:, number], constant_errors[:, number], owners[is_visible])
        for number, axis in enumerate(AXES)
    }


def compare_with_constant(name: str, values: np.ndarray, constant: np.ndarray, owners: np.ndarray) -> dict[str, Any]:
    low, high = bootstrap_interval(values - constant, owners)
    return {
        name: float(values.mean()),
        "constant": float(constant.mean()),
        "difference": float((values - constant).mean()),
        "interval": [low, high],
    }


def bootstrap_interval(values: np.ndarray, owners: np.ndarray) -> tuple[float, float]:
    """Return the interval of the mean of `values`, resampling episodes; `owners` are the episodes of the values."""
    by_owner = [values[owners == owner] for owner in np.unique(owners)]
    sums, counts = np.array([part.sum() for part in by_owner]), np.array([len(part) for part in by_owner])
    samples = np.random.default_rng(0).integers(len(by_owner), size=(BOOTSTRAP_SAMPLES, len(by_owner)))
    means = sums[samples].sum(axis=1) / counts[samples].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
