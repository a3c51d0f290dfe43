"""Writer of a feature cache, for one process or for the processes of an accelerate job, which share the shards.

A build can be killed at any time: finished shards are kept, and the same call resumes the build. The order:

1. The main process writes the projection, if there is one, and the manifest that all shards refer to.
2. Each process computes the missing shards of its rank, batch by batch, and writes each one when it is complete.
3. The main process waits for the shards of the other processes.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.files import create_folder, remove_temporary_files
from rocket_hf.formatting import format_bytes

from .cache_estimate import format_estimate, measure_batch
from .cache_manifest import MANIFEST, Manifest
from .cache_shards import SHARDS, finished_shards, shard_path, write_shard
from .feature_codecs import Storage, encode
from .projection import PROJECTION, SecondMoment, load_matrices, projection_digest
from .registration import register_features
from .scene import scene_images, scene_size
from .teacher import Features, Grid, Teacher

# A shard is held in memory while it is computed, and lost if the process is killed, so small caches have small shards.
SHARD_BYTES, SMALLEST_SHARD_BYTES = 2**28, 2**22
SHARDS_OF_SMALL_CACHE = 16
PROJECTION_FRAMES = 512  # number of random frames from which the projection is computed
PROJECTION_SEED = 0
POLL_SECONDS = 1.0


class FrameSource(Protocol):
    """All frames of a dataset, read by index. It is pickled into the DataLoader's workers."""

    dataset: str
    revision: str
    fingerprint: str
    sizes: dict[str, tuple[int, int]]  # image size (height, width) of each camera

    def __len__(self) -> int: ...

    def read_images(self, indices: Sequence[int]) -> list[Tensor]:
        """Return one tensor (frames, 3, H, W) for each camera: uint8 images, or what else the teacher reads."""


class FrameBatchDataset(Dataset):
    """Map-style dataset whose items are whole batches of frames, so that a DataLoader's workers read batch by batch."""

    def __init__(self, frames: FrameSource, batches: list[range] | list[list[int]]):
        self.frames, self.batches = frames, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> list[Tensor] | Exception:
        """Return exceptions instead of raising them: DataLoader would wrap them in the worker's traceback."""
        try:
            return self.frames.read_images(self.batches[number])
        except OSError as error:
            return UserError(f"the images of {self.frames.dataset} cannot be read: {error}")
        except ValueError as error:
            return error


def plan_cache(
    frames: FrameSource,
    teacher: Teacher,
    layers: Sequence[int],
    storage: Storage = "bf16",
    width: int = 256,
    grid: Grid | None = None,
    shard_bytes: int | None = None,
) -> Manifest:
    """Plan the cache (shards, sizes, keys) without computing features. `width` is the size of projected features."""
    card = teacher.card
    resolved = [card.resolve_layer(layer) for layer in layers]
    if not layers or len(set(resolved)) != len(resolved):
        raise UserError(f"name at least one layer of {card.name}, and each layer once: got {list(layers)}")
    if storage == "projected" and not 1 <= width <= card.width:
        raise UserError(f"the width of projected features must be in 1..{card.width} for {card.name}, got {width}")
    size = scene_size(list(frames.sizes.values()), teacher)
    manifest = Manifest(
        dataset=frames.dataset,
        revision=frames.revision,
        dataset_fingerprint=frames.fingerprint,
        rows=len(frames),
        cameras=tuple(frames.sizes),
        teacher=card.name,
        weights=card.weights,
        license=card.license,
        dtype=str(teacher.dtype).removeprefix("torch."),
        depth=card.depth,
        layers=tuple(layers),
        input_size=size,
        grid=grid or teacher.grid(*size),
        channels=card.width,
        storage=storage,
        width=width if storage == "projected" else card.width,
        rows_per_shard=1,
    )
    if shard_bytes is None:
        share = manifest.rows * manifest.row_bytes // SHARDS_OF_SMALL_CACHE
        shard_bytes = min(max(share, SMALLEST_SHARD_BYTES), SHARD_BYTES)
    return replace(manifest, rows_per_shard=max(1, min(shard_bytes // manifest.row_bytes, manifest.rows)))


class CacheWriter:
    """Writer of one process, number `process` of `processes`, that builds a planned cache in a folder."""

    def __init__(
        self,
        folder: Path,
        plan: Manifest,
        frames: FrameSource,
        teacher: Teacher,
        batch_size: int = 8,
        workers: int = 0,
        process: int = 0,
        processes: int = 1,
    ):
        self.folder, self.manifest, self.frames, self.teacher = folder, plan, frames, teacher
        self.batch_size, self.workers = batch_size, workers
        self.process, self.processes = process, processes

    # Step 1, by the main process only

    def prepare(
        self, free_bytes: int | None = None, report: Callable[[str], None] = print, estimates_time: bool = False
    ) -> None:
        """Check the folder and the disk space before anything is computed, then write the manifest.

        `estimates_time` measures a batch to report how long the build will take.
        """
        has_manifest = (self.folder / MANIFEST).is_file()
        if has_manifest:
            self.resume_from(Manifest.load(self.folder))
        elif self.folder.is_dir() and any(path.name != PROJECTION for path in self.visible_files()):
            raise UserError(f"{self.folder} is not empty and is not a feature cache: choose a new folder with --out")
        finished = finished_shards(self.folder, self.manifest) if has_manifest else set()
        check_disk_space(self.folder, self.manifest, finished, free_bytes, report)
        if estimates_time:
            self.report_time(finished, report)
        create_folder(self.folder)
        remove_temporary_files(self.folder)
        if not has_manifest:
            if self.manifest.storage == "projected":
                self.compute_projection(report)
            self.manifest.save(self.folder)
        create_folder(self.folder / SHARDS)
        remove_temporary_files(self.folder / SHARDS)

    def report_time(self, finished: set[int], report: Callable[[str], None]) -> None:
        rows = self.manifest.rows - sum(len(self.manifest.shard_rows(number)) for number in finished)
        if not rows:
            return
        batch = range(min(self.batch_size, self.manifest.rows))
        first_batch = FrameBatchDataset(self.frames, [batch])
        images = first_batch[0]
        if isinstance(images, Exception):
            raise images

        def compute() -> None:
            for layer_features in self.compute_features(images).maps.values():
                encode(layer_features, self.manifest.storage)

        seconds = measure_batch(lambda: first_batch[0], compute, self.teacher.device)
        patch_size = self.teacher.card.patch_size
        counts = (rows, len(batch), self.workers, self.processes)
        for line in format_estimate(seconds, self.manifest, patch_size, *counts):
            report(line)

    def visible_files(self) -> Iterator[Path]:
        return (path for path in self.folder.iterdir() if not path.name.startswith("."))

    def resume_from(self, existing: Manifest) -> None:
        """Take over the manifest of an interrupted build, with its projection. All other fields must be as planned."""
        planned = replace(self.manifest.with_projection_of(existing), rows_per_shard=existing.rows_per_shard)
        if differences := existing.differences(planned):
            raise UserError(
                f"{self.folder} is another cache, with {'; '.join(differences)}: choose a new folder with --out"
            )
        self.manifest = existing

    def compute_projection(self, report: Callable[[str], None]) -> None:
        plan = self.manifest
        generator = torch.Generator().manual_seed(PROJECTION_SEED)
        chosen = torch.randperm(plan.rows, generator=generator)[:PROJECTION_FRAMES].sort().values.tolist()
        batches = [chosen[start : start + self.batch_size] for start in range(0, len(chosen), self.batch_size)]
        moment = SecondMoment(plan.layers, plan.channels)
        batches_of_images = self.read_batches(batches)
        for images in tqdm(batches_of_images, desc="projection", total=len(batches), disable=None, leave=False):
            moment.add(self.compute_features(images).maps)
        projections = moment.principal_components(plan.width)
        projections.save(self.folder)
        for layer, share in projections.kept.items():
            report(f"layer {layer:3d}  {plan.width} of {plan.channels} dimensions keep {share:.2%} of the variance")
        self.manifest = replace(
            plan,
            projection=projection_digest(self.folder),
            kept=tuple(projections.kept[layer] for layer in plan.layers),
        )

    # Steps 2 and 3, by every process

    def write(self) -> None:
        """Compute and write the missing shards of this process. The main process returns when all shards exist."""
        self.manifest = Manifest.load(self.folder)
        matrices = load_matrices(self.folder, self.manifest.projection) if self.manifest.projection else {}
        self.matrices = {layer: matrix.to(self.teacher.device) for layer, matrix in matrices.items()}
        finished = finished_shards(self.folder, self.manifest)
        own_shards = range(self.process, self.manifest.shards, self.processes)
        batches = {number: self.shard_batches(number) for number in own_shards if number not in finished}
        images = self.read_batches([batch for shard in batches.values() for batch in shard])
        finished_rows = sum(len(self.manifest.shard_rows(number)) for number in finished)
        disable = None if self.process == 0 else True
        bar = tqdm(total=self.manifest.rows, initial=finished_rows, desc="frames", unit="", disable=disable)
        with bar, ThreadPoolExecutor(max_workers=1) as disk:
            pending: Future | None = None  # the previous shard is written while the teacher computes the next one
            for number, shard in batches.items():
                encoded = self.compute_shard(shard, images, bar)
                if pending:
                    pending.result()
                pending = disk.submit(write_shard, self.folder, self.manifest, number, encoded)
            if pending:
                pending.result()
            while self.process == 0 and self.update_progress(bar) < self.manifest.rows:
                time.sleep(POLL_SECONDS)

    def shard_batches(self, shard: int) -> list[range]:
        rows = self.manifest.shard_rows(shard)
        return [
            range(start, min(start + self.batch_size, rows.stop))
            for start in range(rows.start, rows.stop, self.batch_size)
        ]

    def read_batches(self, batches: list[range] | list[list[int]]) -> Iterator[list[Tensor]]:
        """Yield the camera images of each batch, in order."""
        workers = min(self.workers, len(batches))
        context = "spawn" if workers else None
        dataset = FrameBatchDataset(self.frames, batches)
        for item in DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=context):
            if isinstance(item, Exception):
                raise item
            yield item

    def compute_shard(self, batches: list[range], images: Iterator[list[Tensor]], bar: tqdm) -> dict[str, Tensor]:
        """Return the encoded rows of one shard, on the CPU: tensors (rows, layers, cameras, ...)."""
        parts = []
        for batch in batches:
            parts.append(self.encode_batch(next(images), batch))
            self.update_progress(bar, unfinished_rows=batch.stop - batches[0].start)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def compute_features(self, images: list[Tensor]) -> Features:
        """Return the teacher's features, resampled to the grid of the cache."""
        features = self.teacher.features(scene_images(images, self.teacher), self.manifest.layers)
        if features.grid == self.manifest.grid:
            return features
        maps = {
            layer: register_features(tokens.float(), features.grid, self.manifest.grid, code_weight=0)
            for layer, tokens in features.maps.items()
        }
        return Features(maps, self.manifest.grid)

    def encode_batch(self, images: list[Tensor], batch: range) -> dict[str, Tensor]:
        """Return the encoded features of a batch, on the CPU: tensors (batch, layers, cameras, ...)."""
        parts, maps = [], self.compute_features(images).maps
        for layer in self.manifest.layers:
            projected = maps[layer].float() @ self.matrices[layer] if self.matrices else maps[layer]
            parts.append(encode(projected, self.manifest.storage))
            if not all(stored.isfinite().all() for stored in parts[-1].values()):
                raise UserError(
                    f"{self.teacher.card.name} returned features that are not finite, or too large to store, at layer "
                    f"{layer} for one of the frames {batch.start} to {batch.stop - 1}: try --dtype float32"
                )
        return {name: torch.stack([part[name] for part in parts], dim=1).cpu() for name in parts[0]}

    def update_progress(self, bar: tqdm, unfinished_rows: int = 0) -> int:
        """Show the rows in shards that all processes have finished plus `unfinished_rows`. Return the former."""
        if self.process:
            return 0
        shards = (number for number in range(self.manifest.shards) if shard_path(self.folder, number).is_file())
        finished = sum(len(self.manifest.shard_rows(number)) for number in shards)
        bar.n = finished + unfinished_rows
        bar.refresh()
        return finished


def check_disk_space(
    folder: Path, manifest: Manifest, finished: set[int], free_bytes: int | None, report: Callable[[str], None]
) -> None:
    """Report how much space the cache needs. Raise if the disk has less."""
    disk = next(parent for parent in (folder, *folder.resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(disk).free if free_bytes is None else free_bytes
    rows = manifest.rows - sum(len(manifest.shard_rows(number)) for number in finished)
    needed = rows * manifest.row_bytes
    if manifest.storage == "projected" and manifest.projection is None:
        needed += len(manifest.layers) * manifest.channels * manifest.width * torch.float32.itemsize
    sizes = f"{format_bytes(manifest.row_bytes)} per frame, {format_bytes(needed)} for {rows:,} frames"
    if needed > free:
        raise UserError(
            f"the cache needs {sizes}, and {disk} has {format_bytes(free)} free: "
            "choose another folder, --storage int8 or projected, fewer layers, or a smaller --grid"
        )
    report(f"disk       {sizes}; {format_bytes(free)} free")
