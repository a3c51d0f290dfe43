"""Normalization statistics of a processor: per dimension of state and action, over all selected frames of all datasets.

Quantiles are computed over all frames together, because a mean of the episodes' quantiles is not a quantile of the
whole.
"""

from collections.abc import Sequence

import numpy as np

from rocket_hf.modeling.normalization import CONSTANT_DEVIATIONS, Statistics

from .lerobot_data import RobotDataset

MAX_DEVIATION_RATIO = 20  # radians and degrees differ by a factor of 57


def compute_dataset_statistics(datasets: Sequence[RobotDataset]) -> dict[str, Statistics]:
    """Return the statistics of the selected episodes, from the columns in memory; no image is decoded.

    Those of a dimension are over the datasets that have it.
    """
    return {
        name: statistics_of_tables(selected_frames(datasets, name), masks, CONSTANT_DEVIATIONS[name])
        for name, masks in (
            ("state", [data.state_mask.numpy() for data in datasets]),
            ("action", [data.action_mask.numpy() for data in datasets]),
        )
    }


def selected_frames(datasets: Sequence[RobotDataset], name: str) -> list[np.ndarray]:
    """Return the states or actions of each dataset's selected episodes, (frames, dim)."""
    tables = []
    for data in datasets:
        rows = np.concatenate([np.array(data.frame_range(index)) for index in data.episodes])
        tables.append((data.state if name == "state" else data.actions).numpy()[rows])
    return tables


def statistics_of_tables(
    tables: Sequence[np.ndarray], masks: Sequence[np.ndarray], constant_deviation: float
) -> Statistics:
    """Return the statistics of each column over the tables whose mask has it; each column must be in one of them."""
    is_in = np.stack(masks)  # (tables, dim)
    if is_in.all():
        return compute_statistics(np.concatenate(tables), constant_deviation)
    statistics: dict[str, list] = {}
    for index in range(is_in.shape[1]):
        column = np.concatenate([table[:, [index]] for table, has in zip(tables, is_in[:, index], strict=True) if has])
        for name, values in compute_statistics(column, constant_deviation).items():
            statistics.setdefault(name, []).extend(values)
    return statistics


def unit_differences(datasets: Sequence[RobotDataset], names: dict[str, Sequence[str] | None]) -> list[str]:
    """Return the dimensions whose standard deviations differ so much between datasets that their units may differ.

    `names` are those of the policy's "state" and "action".
    """
    found = []
    for part in ("state", "action"):
        tables = selected_frames(datasets, part)
        for index in range(tables[0].shape[1]):
            deviations = {data.id: float(table[:, index].std()) for data, table in zip(datasets, tables, strict=True)}
            moving = {id: value for id, value in deviations.items() if value > 0}
            if len(moving) > 1 and max(moving.values()) > MAX_DEVIATION_RATIO * min(moving.values()):
                dimension = (names[part] or range(index + 1))[index]
                found.append(f"{part} {dimension} ({', '.join(f'{id} {value:.3g}' for id, value in moving.items())})")
    return found


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
