"""Normalization statistics of OpenVLA checkpoints, from dataset_statistics.json and from config.json."""

from pathlib import Path
from typing import Any

from rocket_hf.checkpoint_files import json_value, read_json_object
from rocket_hf.errors import UserError
from rocket_hf.modeling.normalization import Statistics

PARTS = {"action": "action", "proprio": "state"}
KEYS = ("mask", "mean", "std", "min", "max", "q01", "q99")


def choose_statistics(folder: Path, config: dict[str, Any], key: str | None) -> dict[str, Statistics]:
    """Return the statistics of the dataset `key`.

    dataset_statistics.json has those of the policy's own training, and config.json has those of its base model under
    `norm_stats`. For a key in both, the former apply, as in the public code. Without a key, dataset_statistics.json, or
    config.json if there is no such file, must have a single dataset.
    """
    own_file, base_file = folder / "dataset_statistics.json", folder / "config.json"
    own = read_json_object(own_file) if own_file.exists() else {}
    base = json_value(config, "norm_stats", base_file, dict) if "norm_stats" in config else {}
    if not own | base:
        raise UserError(f"{folder} has no statistics: neither dataset_statistics.json nor norm_stats in config.json")
    names = {own_file: list(own), base_file: [name for name in base if name not in own]}
    choices = " and ".join(f"{', '.join(keys)} ({file.name})" for file, keys in names.items() if keys)
    if key is None and len(own or base) > 1:
        raise UserError(
            f"{folder} has statistics of {len(own | base)} datasets: choose one with --statistics, from {choices}"
        )
    key = next(iter(own or base)) if key is None else key
    if key not in own | base:
        raise UserError(f"{folder} has no statistics of the dataset {key!r}; it has: {choices}")
    if key in own:
        return read_parts(json_value(own, key, own_file, dict), own_file)
    return read_parts(json_value(base, key, base_file, dict), base_file)


def read_parts(by_part: dict[str, Any], path: Path) -> dict[str, Statistics]:
    """Return the statistics of one dataset under this package's names."""
    json_value(by_part, "action", path, dict)
    statistics: dict[str, Statistics] = {}
    for name, part in PARTS.items():
        if name in by_part:
            values = json_value(by_part, name, path, dict)
            statistics[part] = {key: json_value(values, key, path, list) for key in KEYS if key in values}
    return statistics
