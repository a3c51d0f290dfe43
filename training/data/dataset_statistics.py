"""What the processor normalizes by: of every dimension of state and action, over every frame of every dataset.

Quantiles are true ones, of all frames together. (A mean of the episodes' quantiles is none of the whole.)
"""

from collections.abc import Sequence

import numpy as np

from rocket_hf.modeling.normalization import Statistics

from .lerobot_data import RobotDataset


def dataset_statistics(datasets: Sequence[RobotDataset]) -> dict[str, Statistics]:
    """From the columns in memory, of the chosen episodes; nothing is decoded."""
    chosen = [np.concatenate([np.arange(*bounds(data, number)) for number in data.episodes]) for data in datasets]
    columns = {
        "state": [data.state.numpy()[rows] for data, rows in zip(datasets, chosen, strict=True)],
        "action": [data.actions.numpy()[rows] for data, rows in zip(datasets, chosen, strict=True)],
    }
    return {name: statistics(np.concatenate(parts)) for name, parts in columns.items()}


def bounds(data: RobotDataset, episode: int) -> tuple[int, int]:
    return int(data.starts[episode]), int(data.ends[episode])


def statistics(table: np.ndarray) -> Statistics:
    """Of (frames, dim). Where both quantiles are equal though the dimension moves, a gripper that is nearly always
    open for instance, its extremes stand for them: between equal ones nothing can be scaled."""
    low, high = table.min(axis=0), table.max(axis=0)
    quantiles = [np.quantile(table[:, index], [0.01, 0.99]) for index in range(table.shape[1])]  # (dim, 2)
    q01, q99 = np.array(quantiles).astype(np.float32).T
    stuck = q01 == q99
    of = {
        "mean": table.mean(axis=0, dtype=np.float64),
        "std": table.std(axis=0, dtype=np.float64),
        "min": low,
        "max": high,
        "q01": np.where(stuck, low, q01),
        "q99": np.where(stuck, high, q99),
    }
    return {name: values.tolist() for name, values in of.items()}
