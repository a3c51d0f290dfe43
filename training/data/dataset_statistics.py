"""Normalization statistics of a processor: per dimension of state and action, over all selected frames of all datasets.

Quantiles are computed over all frames together, because a mean of the episodes' quantiles is not a quantile of the
whole.
"""

from collections.abc import Sequence

import numpy as np

from rocket_hf.modeling.normalization import CONSTANT_DEVIATIONS, Statistics

from .lerobot_data import RobotDataset


def compute_dataset_statistics(datasets: Sequence[RobotDataset]) -> dict[str, Statistics]:
    """Return the statistics of the selected episodes, from the columns in memory; no image is decoded."""
    frames = [np.concatenate([np.array(data.frame_range(index)) for index in data.episodes]) for data in datasets]
    columns = {
        "state": [data.state.numpy()[rows] for data, rows in zip(datasets, frames, strict=True)],
        "action": [data.actions.numpy()[rows] for data, rows in zip(datasets, frames, strict=True)],
    }
    return {
        name: compute_statistics(np.concatenate(parts), CONSTANT_DEVIATIONS[name]) for name, parts in columns.items()
    }


def compute_statistics(table: np.ndarray, constant_deviation: float = 1.0) -> Statistics:
    """Return the statistics of each column of (frames, dim).

    If both quantiles of a moving dimension are equal (for instance of a gripper that is nearly always open), its
    minimum and maximum replace them, because a range of zero cannot be normalized. A dimension that never moves gets
    `constant_deviation` instead of its deviation of zero, by which values could not be divided.
    """
    low, high = table.min(axis=0), table.max(axis=0)
    quantiles = [np.quantile(table[:, index], [0.01, 0.99]) for index in range(table.shape[1])]  # (dim, 2)
    q01, q99 = np.array(quantiles).astype(np.float32).T
    is_flat = q01 == q99
    statistics = {
        "mean": table.mean(axis=0, dtype=np.float64),
        "std": np.where(low == high, constant_deviation, table.std(axis=0, dtype=np.float64)),
        "min": low,
        "max": high,
        "q01": np.where(is_flat, low, q01),
        "q99": np.where(is_flat, high, q99),
    }
    return {name: values.tolist() for name, values in statistics.items()}
