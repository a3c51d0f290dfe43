"""Fingerprints of the inputs of a run: datasets, policy, teacher, feature caches and normalization statistics.

They are stored in the run's folder when it starts, and compared when it is resumed.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rocket_hf.checkpoint_files import json_value, read_json_object
from rocket_hf.errors import UserError
from rocket_hf.files import file_digest, write_json

from .data.lerobot_files import locate_dataset
from .recipe import BaseRecipe

INPUTS = "inputs.json"
WITHOUT_CHECK = "remove it to resume without a check of the inputs"
DATASET_TABLES, DATASET_VIDEOS = ("meta/**/*.json", "meta/**/*.parquet", "data/**/*.parquet"), ("videos/**/*.mp4",)
POLICY_INPUTS = ("config.json", "processor_config.json", "tokenizer*", "special_tokens_map.json", "model*.safetensors")
# Videos are large: their size, first and last bytes are compared.
COMPARED_VIDEO_BYTES = 2**20
# Sums over the same frames differ in their last digits between processors.
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-5, 1e-7

# Hashes of files and values of statistics, by the name of the input.
Fingerprints = dict[str, dict[str, Any]]


def dataset_fingerprints(recipe: BaseRecipe) -> Fingerprints:
    """Return the fingerprints of all files of the recipe's datasets."""
    fingerprints = {}
    for dataset in recipe.data.datasets:
        folder, _ = locate_dataset(dataset.id)
        files = hash_files(folder, DATASET_TABLES)
        videos = {file: hash_ends(folder / file) for file in find_files(folder, DATASET_VIDEOS)}
        fingerprints[f"the dataset {dataset.id}"] = files | videos
    return fingerprints


def policy_fingerprints(name: str, folder: Path) -> Fingerprints:
    return {f"the policy {name}": hash_files(folder, POLICY_INPUTS)}


def hash_files(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    return {file: file_digest(folder / file) for file in find_files(folder, patterns)}


def find_files(folder: Path, patterns: Iterable[str]) -> list[str]:
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def hash_ends(path: Path) -> str:
    """Return the SHA-256 of a file's size, first and last bytes."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(COMPARED_VIDEO_BYTES))
        file.seek(max(0, size - COMPARED_VIDEO_BYTES))
        digest.update(file.read(COMPARED_VIDEO_BYTES))
    return digest.hexdigest()


def write_fingerprints(fingerprints: Fingerprints, out: Path) -> None:
    write_json(out / INPUTS, fingerprints)


def check_same_inputs(fingerprints: Fingerprints, out: Path) -> bool:
    """Raise a UserError that names the inputs that have changed since the run in `out` was started.

    Return False if the run has no fingerprints, because version 0.1.0 started it.
    """
    path = out / INPUTS
    if not path.is_file():
        return False
    started: Fingerprints = read_json_object(path, WITHOUT_CHECK)
    for name in started:
        json_value(started, name, path, dict)
    changed = describe_changes(started, fingerprints)
    if changed:
        raise UserError(
            f"the inputs of the run in {out} have changed since it was started: {'; '.join(changed)}: restore them, or "
            "start a new run with another --out"
        )
    return True


def describe_changes(started: Fingerprints, current: Fingerprints) -> list[str]:
    """Return the name of each input that has changed, with the parts that differ."""
    changes = []
    for name in sorted(started.keys() | current.keys()):
        before, now = started.get(name, {}), current.get(name, {})
        keys = [key for key in sorted(before.keys() | now.keys()) if not is_same(before.get(key), now.get(key))]
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            changes.append(f"{name} ({', '.join(keys[:3])}{more})")
    return changes


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
    return one == other


def statistics_values(statistics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the statistics of a processor by names such as "action.mean"."""
    return {f"{part}.{name}": value for part, values in statistics.items() for name, value in values.items()}
