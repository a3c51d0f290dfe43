"""What a feature cache holds, in one file `manifest.json`: of which dataset, of which teacher, and how it is stored.

A row is a frame, by its index in the dataset; consecutive rows lie together in shards. Every shard names the manifest's
fingerprint, so that it cannot be taken for one of another cache.
"""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import torch

from rocket_hf.errors import UserError
from rocket_hf.files import write_text

from .feature_codecs import Storage, layout, stored_bytes
from .teacher import Grid

MANIFEST = "manifest.json"
VERSION = 1
CHECKSUM = torch.int64  # it holds a CRC-32, one for each layer of each camera of each row
LOCAL = "local"  # the revision of a dataset that is a folder


@dataclass(frozen=True)
class Manifest:
    dataset: str  # Hub id, or the folder's name
    revision: str
    dataset_fingerprint: str
    rows: int
    cameras: tuple[str, ...]  # the dataset's keys; together they are the scene that the teacher saw
    teacher: str
    weights: str  # the hash on the teacher's card
    license: str
    dtype: str  # that the teacher computed in
    depth: int
    layers: tuple[int, ...]  # as they were asked for
    input_size: tuple[int, int]  # of the pictures that the teacher saw
    grid: Grid
    channels: int
    storage: Storage
    width: int  # of a stored token: the teacher's channels, or fewer when they are projected
    rows_per_shard: int
    projection: str | None = None  # the file's sha256
    kept: tuple[float, ...] | None = None  # by layer, what the projection keeps of the squared length
    version: int = VERSION

    @cached_property
    def fingerprint(self) -> str:
        return sha256(self.as_json().encode()).hexdigest()

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Of one row: layers, cameras, patches."""
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
        """The dtype and shape of each tensor of a shard: (rows, layers, cameras, ...)."""
        rows = len(self.shard_rows(number))
        stored = layout(self.storage, (rows, *self.tokens), self.width)
        return stored | {"crc32": (CHECKSUM, (rows, *self.tokens[:2]))}

    def as_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    def save(self, folder: Path) -> None:
        write_text(folder / MANIFEST, self.as_json())

    @classmethod
    def load(cls, folder: Path) -> Self:
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(f"{folder} is no feature cache: it has no {MANIFEST} (`rocket-hf cache build` makes one)")
        try:
            stated: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if stated["version"] != VERSION:
                raise UserError(f"version {stated['version']}, this package writes version {VERSION}")
            stated = {key: tuple(value) if isinstance(value, list) else value for key, value in stated.items()}
            return cls(**stated)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): delete this cache and build it again") from None

    def with_projection_of(self, other: "Manifest") -> "Manifest":
        return replace(self, projection=other.projection, kept=other.kept)

    def differences(self, other: "Manifest") -> list[str]:
        """In words, field by field."""
        pairs = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return [f"{name} {mine} instead of {theirs}" for name, mine, theirs in pairs if mine != theirs]
