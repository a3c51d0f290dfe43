"""Manifest of a feature cache: `manifest.json`, which records the dataset, the teacher and the storage format.

A row holds the features of one frame and is addressed by the frame's index in the dataset; consecutive rows are stored
together in shards. Every shard repeats the manifest's fingerprint, so that a shard of another cache is detected.
"""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Self, get_args

import torch

from rocket_hf.errors import UserError
from rocket_hf.files import write_text
from rocket_hf.foreign_code import check_no_foreign_code

from .feature_codecs import Storage, layout, stored_bytes
from .teacher import Grid

MANIFEST = "manifest.json"
VERSION = 1
CHECKSUM = torch.int64  # dtype of the CRC-32 checksums, one for each layer of each camera of each row
LOCAL = "local"  # revision of a dataset that is a local folder


@dataclass(frozen=True)
class Manifest:
    """Contents and storage format of a feature cache. The field names are the keys of `manifest.json`."""

    dataset: str  # Hub id, or the folder's name
    revision: str
    dataset_fingerprint: str
    rows: int
    cameras: tuple[str, ...]  # the dataset's keys; the teacher received all of them as one scene
    teacher: str
    weights: str  # hash of the teacher's weights
    license: str
    dtype: str  # dtype that the teacher computed in
    depth: int
    layers: tuple[int, ...]  # as requested: negative numbers stay negative
    input_size: tuple[int, int]  # size of the images that the teacher received
    grid: Grid
    channels: int
    storage: Storage
    width: int  # numbers per stored token: the teacher's channels, or fewer if they are projected
    rows_per_shard: int
    projection: str | None = None  # SHA-256 of the projection file
    kept: tuple[float, ...] | None = None  # share of the squared length that the projection keeps, for each layer
    version: int = VERSION

    def __post_init__(self) -> None:
        """Raise a ValueError for impossible values, which a damaged file may contain."""
        counts = {name: getattr(self, name) for name in ("rows", "rows_per_shard", "depth", "channels", "width")}
        sides = {name: getattr(self, name) for name in ("input_size", "grid")}
        for name, value in counts.items():
            if not is_positive_integer(value):
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        for name, value in sides.items():
            if not isinstance(value, tuple) or len(value) != 2 or not all(map(is_positive_integer, value)):
                raise ValueError(f"{name} must be two positive integers, got {value!r}")
        if self.storage not in get_args(Storage):
            raise ValueError(f"there is no storage {self.storage!r}")
        if self.rows_per_shard > self.rows or self.width > self.channels:
            raise ValueError(
                f"{self.rows_per_shard} rows per shard of {self.rows} rows, or {self.width} numbers per token of "
                f"{self.channels} channels, are impossible"
            )
        if not self.cameras or not all(isinstance(camera, str) for camera in self.cameras):
            raise ValueError(f"cameras must be names, got {self.cameras!r}")
        if not self.layers or not all(isinstance(layer, int) and 0 < abs(layer) <= self.depth for layer in self.layers):
            raise ValueError(f"layers must be in 1..{self.depth}, got {self.layers!r}")

    @cached_property
    def fingerprint(self) -> str:
        # Version 0.1.0 spelled the key "licence". The hash keeps that spelling, or every shard written before would
        # count as a shard of another cache.
        values = {"licence" if key == "license" else key: value for key, value in asdict(self).items()}
        return sha256(format_json(values).encode()).hexdigest()

    def layer_index(self, layer: int) -> int | None:
        """Return the index of a teacher layer among the stored ones, or None. Negative numbers count from the end."""
        stored = [number % (self.depth + 1) for number in self.layers]
        exists = -self.depth <= layer <= self.depth and layer % (self.depth + 1) in stored
        return stored.index(layer % (self.depth + 1)) if exists else None

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Shape of one row: (layers, cameras, patches)."""
        return len(self.layers), len(self.cameras), math.prod(self.grid)

    @property
    def row_bytes(self) -> int:
        layers, cameras, _ = self.tokens
        return stored_bytes(self.storage, self.tokens, self.width) + layers * cameras * CHECKSUM.itemsize

    @property
    def shards(self) -> int:
        return math.ceil(self.rows / self.rows_per_shard)

    def shard_rows(self, number: int) -> range:
        start = number * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.rows))

    def shard_layout(self, number: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Return the dtype and shape (rows, layers, cameras, ...) of each tensor of a shard."""
        rows = len(self.shard_rows(number))
        stored = layout(self.storage, (rows, *self.tokens), self.width)
        return stored | {"crc32": (CHECKSUM, (rows, *self.tokens[:2]))}

    def save(self, folder: Path) -> None:
        write_text(folder / MANIFEST, format_json(asdict(self)))

    @classmethod
    def load(cls, folder: Path) -> Self:
        path = folder / MANIFEST
        check_no_foreign_code(folder)
        if not path.is_file():
            raise UserError(
                f"{folder} is not a feature cache: it has no {MANIFEST}. Build a cache with `rocket-hf cache build`."
            )
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if values["version"] != VERSION:
                raise ValueError(f"it has version {values['version']}, and this package reads version {VERSION}")
            values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
            if "licence" in values:  # spelling of version 0.1.0
                values["license"] = values.pop("licence")
            return cls(**values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): delete this cache and build it again") from None

    def with_projection_of(self, other: "Manifest") -> "Manifest":
        return replace(self, projection=other.projection, kept=other.kept)

    def differences(self, other: "Manifest") -> list[str]:
        """Return a phrase for each field whose value differs from the other manifest's."""
        pairs = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return [f"{name} {value} instead of {expected}" for name, value, expected in pairs if value != expected]


def is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def format_json(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, indent=1)
