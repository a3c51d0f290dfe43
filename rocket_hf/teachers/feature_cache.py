"""Reading a teacher's cached features while training: rows by the frame's index in the dataset, decoded on the device.

A row is read in a worker, still encoded, and memory-mapped, so that workers share the pages; it is decoded as part of a
batch, on the device. What is read for the first time in a process is checked against its checksum.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.modeling.policy_interface import resolve_layer
from rocket_hf.modeling.strict_config import nearest

from .cache_manifest import LOCAL, Manifest
from .cache_shards import as_bytes, checksum, corrupt, open_shard, shard_path
from .feature_codecs import decode, layout
from .projection import load_matrices
from .teacher import Features


class FeatureCache:
    """A folder that `rocket-hf cache build` wrote, or the chosen layers and cameras of it, in the order chosen.

    The teacher saw all cameras of the cache as one scene, in the cache's order; `scene_note` tells where that matters.
    """

    def __init__(self, folder: str | Path, cameras: Sequence[str] | None = None, layers: Sequence[int] | None = None):
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self.cameras = tuple(self.manifest.cameras if cameras is None else cameras)
        self.layers = tuple(self.manifest.layers if layers is None else layers)
        self.grid, self.width, self.storage = self.manifest.grid, self.manifest.width, self.manifest.storage
        self._layer_places = [self._place_of_layer(layer) for layer in self.layers]
        self._camera_places = [self._place_of_camera(camera) for camera in self.cameras]
        self._matrices = load_matrices(self.folder, self.manifest.projection) if self.manifest.projection else {}
        self._opened: dict[int, OpenedShard] = {}
        self._check_complete()

    def __len__(self) -> int:
        return self.manifest.rows

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}  # each process maps the files itself

    def _place_of_layer(self, layer: int) -> int:
        depth = self.manifest.depth
        held = [resolve_layer(other, depth) for other in self.manifest.layers]
        if resolve_layer(layer, depth) not in held:
            raise UserError(
                f"{self.folder} has no teacher layer {layer}: it has {list(self.manifest.layers)} of "
                f"{self.manifest.teacher}; build another with `rocket-hf cache build --layers`"
            )
        return held.index(resolve_layer(layer, depth))

    def _place_of_camera(self, camera: str) -> int:
        if camera not in self.manifest.cameras:
            raise UserError(f"{self.folder} has no camera {camera!r}: {nearest(camera, self.manifest.cameras)}")
        return self.manifest.cameras.index(camera)

    def _check_complete(self) -> None:
        shards = range(self.manifest.shards)
        missing = [number for number in shards if not shard_path(self.folder, number).is_file()]
        if missing:
            raise UserError(
                f"{self.folder} is unfinished, {len(missing)} of {len(shards)} shards are missing: "
                "run the same `rocket-hf cache build` again, it goes on where it stopped"
            )

    def check(self, dataset: str, revision: str, fingerprint: str) -> None:
        """That it is of this dataset. A folder has no revision; its fingerprint says what it is a copy of."""
        mine = self.manifest
        names_agree = LOCAL in (revision, mine.revision) or (dataset, revision) == (mine.dataset, mine.revision)
        if names_agree and fingerprint == mine.dataset_fingerprint:
            return
        other = f"{dataset}@{revision}"
        if other == f"{mine.dataset}@{mine.revision}":
            other = f"{other} as it is now (its episodes, cameras or pictures have changed)"
        raise UserError(
            f"{self.folder} holds features of {mine.dataset}@{mine.revision}, not of {other}: "
            "build another with `rocket-hf cache build`"
        )

    @property
    def scene_note(self) -> str:
        """One sentence where the features are not exactly those that the teacher would give live; else empty."""
        if self.cameras == self.manifest.cameras:
            return ""
        return (
            f"{self.folder} was made of the cameras {', '.join(self.manifest.cameras)} in this order and serves "
            f"{', '.join(self.cameras)}: a teacher that sees cameras together, as VGGT does, differs a little live."
        )

    def read(self, index: int) -> dict[str, Tensor]:
        """The row of a frame, still encoded: tensors (layers, cameras, ...), which collate to a batch."""
        assert 0 <= index < len(self), f"{self.folder} has {len(self)} rows, asked for {index}"
        number, row = divmod(index, self.manifest.rows_per_shard)
        if number not in self._opened:
            self._opened[number] = OpenedShard(self.folder, self.manifest, number)
        parts = self._opened[number].read(row, self._layer_places, self._camera_places)
        form = layout(self.storage, (len(self.layers), len(self.cameras), self.manifest.tokens[2]), self.width)
        return {name: torch.from_numpy(parts[name]).view(dtype).reshape(shape) for name, (dtype, shape) in form.items()}

    def decode(self, rows: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Features:
        """Rows of a batch, (B, layers, cameras, ...), wherever they lie."""
        maps = {
            layer: decode({name: stored[:, place] for name, stored in rows.items()}, self.storage, dtype)
            for place, layer in enumerate(self.layers)
        }
        return Features(maps, self.grid)

    def projection(self, layer: int) -> Tensor | None:
        """(C, width), by which the features of this layer were multiplied before they were stored."""
        return self._matrices[self.manifest.layers[self._place_of_layer(layer)]] if self._matrices else None


class OpenedShard:
    """A shard mapped into this process. It remembers what it has checked: a selection of layers and cameras is one
    cache's, so a row is checked once."""

    def __init__(self, folder: Path, manifest: Manifest, number: int):
        tensors = open_shard(folder, manifest, number)
        self.path = shard_path(folder, number)
        self.first = manifest.shard_rows(number).start
        self.sums = tensors.pop("crc32")
        self.stored = {name: as_bytes(tensor) for name, tensor in tensors.items()}
        self.checked: set[int] = set()

    def read(self, row: int, layers: list[int], cameras: list[int]) -> dict[str, np.ndarray]:
        """Copies of the chosen parts alone: (layers, cameras, bytes)."""
        chosen = np.ix_(layers, cameras)
        parts = {name: stored[row][chosen] for name, stored in self.stored.items()}
        if row not in self.checked:
            self.check(row, self.sums[row].numpy()[chosen], [parts[name] for name in sorted(parts)])
            self.checked.add(row)
        return parts

    def check(self, row: int, sums: np.ndarray, parts: list[np.ndarray]) -> None:
        for position in np.ndindex(*sums.shape):
            if checksum([part[position] for part in parts]) != sums[position]:
                raise corrupt(self.path, f"the features of frame {self.first + row} do not have their checksum")
