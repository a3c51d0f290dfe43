"""Reader of a feature cache during training: rows are addressed by frame index and decoded on the device.

A DataLoader worker reads a row still encoded from a memory-mapped shard, so that workers share the pages; the device
decodes whole batches. A process checks the checksum of each row when it reads the row for the first time.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.modeling.strict_config import suggest_name

from .cache_manifest import LOCAL, Manifest
from .cache_shards import checksum, corrupt_shard_error, existing_shards, open_shard, shard_path, view_as_bytes
from .feature_codecs import decode, layout
from .projection import load_matrices
from .teacher import Features


class FeatureCache:
    """Reader of a folder written by `rocket-hf cache build`, for all or some of its cameras and layers, in any order.

    The teacher received all cameras of the cache as one scene, in the cache's order. `scene_note` warns when that
    differs from what a live teacher would receive.
    """

    def __init__(self, folder: str | Path, cameras: Sequence[str] | None = None, layers: Sequence[int] | None = None):
        self.folder = Path(folder)
        self.manifest = Manifest.load(self.folder)
        self.cameras = tuple(self.manifest.cameras if cameras is None else cameras)
        self.layers = tuple(self.manifest.layers if layers is None else layers)
        self.grid, self.width, self.storage = self.manifest.grid, self.manifest.width, self.manifest.storage
        self._layer_indices = [self._layer_index(layer) for layer in self.layers]
        self._camera_indices = [self._camera_index(camera) for camera in self.cameras]
        self._matrices = load_matrices(self.folder, self.manifest.projection) if self.manifest.projection else {}
        self._mapped_shards: dict[int, MappedShard] = {}
        self._check_complete()

    def __len__(self) -> int:
        return self.manifest.rows

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped_shards": {}}  # each process maps the files itself

    def _layer_index(self, layer: int) -> int:
        index = self.manifest.layer_index(layer)
        if index is None:
            raise UserError(
                f"{self.folder} has no teacher layer {layer}: it has {list(self.manifest.layers)} of "
                f"{self.manifest.teacher}. Build another cache with `rocket-hf cache build --layers`."
            )
        return index

    def _camera_index(self, camera: str) -> int:
        if camera not in self.manifest.cameras:
            raise UserError(f"{self.folder} has no camera {camera!r}: {suggest_name(camera, self.manifest.cameras)}")
        return self.manifest.cameras.index(camera)

    def _check_complete(self) -> None:
        shards = self.manifest.shards
        if missing := shards - len(existing_shards(self.folder, self.manifest)):
            raise UserError(
                f"{self.folder} is incomplete, {missing} of {shards} shards are missing: "
                "run the same `rocket-hf cache build` again to resume it"
            )

    def check_dataset(self, dataset: str, revision: str, fingerprint: str) -> None:
        """Raise unless the cache belongs to this dataset. A local folder has no revision: its fingerprint decides."""
        manifest = self.manifest
        is_local = LOCAL in (revision, manifest.revision)
        is_same_name = is_local or (dataset, revision) == (manifest.dataset, manifest.revision)
        if is_same_name and fingerprint == manifest.dataset_fingerprint:
            return
        requested, cached = f"{dataset}@{revision}", f"{manifest.dataset}@{manifest.revision}"
        if requested == cached:
            requested = f"{requested} in its current state (its episodes, cameras or images have changed)"
        raise UserError(
            f"{self.folder} holds features of {cached}, not of {requested}: "
            "build another cache with `rocket-hf cache build`"
        )

    @property
    def scene_note(self) -> str:
        """One sentence if the features differ from those that the teacher would compute live; otherwise empty."""
        if self.cameras == self.manifest.cameras:
            return ""
        return (
            f"{self.folder} was built from the cameras {', '.join(self.manifest.cameras)} in this order and is read "
            f"for {', '.join(self.cameras)}: features of a teacher that attends across cameras, such as VGGT, differ a "
            "little from live ones."
        )

    def read(self, index: int) -> dict[str, Tensor]:
        """Return the encoded row of a frame: tensors (layers, cameras, ...), ready to be collated into a batch."""
        assert 0 <= index < len(self), f"{self.folder} has {len(self)} rows, requested row {index}"
        number, row = divmod(index, self.manifest.rows_per_shard)
        if number not in self._mapped_shards:
            self._mapped_shards[number] = MappedShard(self.folder, self.manifest, number)
        parts = self._mapped_shards[number].read(row, self._layer_indices, self._camera_indices)
        shapes = layout(self.storage, (len(self.layers), len(self.cameras), self.manifest.tokens[2]), self.width)
        return {
            name: torch.from_numpy(parts[name]).view(dtype).reshape(shape) for name, (dtype, shape) in shapes.items()
        }

    def decode(self, rows: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Features:
        """Decode a batch of rows (B, layers, cameras, ...) on their device."""
        maps = {
            layer: decode({name: stored[:, index] for name, stored in rows.items()}, self.storage, dtype)
            for index, layer in enumerate(self.layers)
        }
        return Features(maps, self.grid)

    def projection(self, layer: int) -> Tensor | None:
        """Return the matrix (C, width) that the layer's features were multiplied by before they were stored."""
        return self._matrices[self.manifest.layers[self._layer_index(layer)]] if self._matrices else None


class MappedShard:
    """A shard mapped into this process.

    It remembers which rows were checked. One FeatureCache always reads the same layers and cameras of a row, so each
    row is checked once.
    """

    def __init__(self, folder: Path, manifest: Manifest, number: int):
        tensors = open_shard(folder, manifest, number)
        self.path = shard_path(folder, number)
        self.first_row = manifest.shard_rows(number).start
        self.checksums = tensors.pop("crc32")
        self.stored = {name: view_as_bytes(tensor) for name, tensor in tensors.items()}
        self.checked_rows: set[int] = set()

    def read(self, row: int, layers: list[int], cameras: list[int]) -> dict[str, np.ndarray]:
        """Return copies (layers, cameras, bytes) of the chosen parts of a row."""
        chosen = np.ix_(layers, cameras)
        parts = {name: stored[row][chosen] for name, stored in self.stored.items()}
        if row not in self.checked_rows:
            self.check(row, self.checksums[row].numpy()[chosen], [parts[name] for name in sorted(parts)])
            self.checked_rows.add(row)
        return parts

    def check(self, row: int, checksums: np.ndarray, parts: list[np.ndarray]) -> None:
        for position in np.ndindex(*checksums.shape):
            if checksum([part[position] for part in parts]) != checksums[position]:
                raise corrupt_shard_error(
                    self.path, f"the features of frame {self.first_row + row} do not match their checksum"
                )
