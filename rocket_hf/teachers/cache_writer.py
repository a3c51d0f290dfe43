"""Building a feature cache, by one process or by those of an accelerate job, which share the shards.

It may be stopped at any moment, by kill -9 too: what is finished stays, and the same call goes on. The order:

1. the main process writes the projection, where there is one, and the manifest that all shards refer to;
2. each process computes the shards of its rank that are not there yet, batch by batch, and writes each at once;
3. the main process waits for the shards of the others.
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
from rocket_hf.files import remove_stale
from rocket_hf.modeling.policy_interface import resolve_layer

from .cache_manifest import MANIFEST, Manifest
from .cache_shards import SHARDS, finished_shards, shard_path, write_shard
from .feature_codecs import Storage, encode
from .projection import PROJECTION, SecondMoment, file_digest, load_matrices
from .registration import register_features
from .scene import scene_pictures, scene_size
from .teacher import Features, Grid, Teacher

SHARD_BYTES = 2**28  # one is held in memory while it is made, and lost when the process is killed
PROJECTION_FRAMES = 512  # of the dataset, from which the projection is made
PROJECTION_SEED = 0
POLL_SECONDS = 1.0


class Frames(Protocol):
    """The pictures of a dataset. It is pickled into the workers that read."""

    dataset: str
    revision: str
    fingerprint: str
    sizes: dict[str, tuple[int, int]]  # by camera, height and width

    def __len__(self) -> int: ...

    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        """By camera, (frames, 3, H, W) uint8."""


class Batches(Dataset):
    """Frames, batch by batch: how a DataLoader's worker reads them."""

    def __init__(self, frames: Frames, batches: list[range] | list[list[int]]):
        self.frames, self.batches = frames, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> list[Tensor] | Exception:
        """What goes wrong is handed on, since a DataLoader would wrap it in the worker's whole traceback."""
        try:
            return self.frames.pictures(self.batches[number])
        except (ValueError, OSError) as error:
            return error


def plan_cache(
    frames: Frames,
    teacher: Teacher,
    layers: Sequence[int],
    storage: Storage = "bf16",
    width: int = 256,
    grid: Grid | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """What the cache will hold; `width` is that of projected features. Nothing is computed or written."""
    card = teacher.card
    resolved = [resolve_layer(layer, card.depth) for layer in layers]
    if not layers or 0 in resolved or len(set(resolved)) != len(resolved):
        raise UserError(f"name each layer of {card.name} once, at least one of 1..{card.depth}: {list(layers)}")
    if storage == "projected" and not 1 <= width <= card.width:
        raise UserError(f"width must lie in 1..{card.width}, the channels of {card.name}: {width}")
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
    return replace(manifest, rows_per_shard=max(1, min(shard_bytes // manifest.row_bytes, manifest.rows)))


class CacheWriter:
    """One process of `processes` that build the cache of a plan in a folder."""

    def __init__(
        self,
        folder: Path,
        plan: Manifest,
        frames: Frames,
        teacher: Teacher,
        batch_size: int = 8,
        workers: int = 0,
        process: int = 0,
        processes: int = 1,
    ):
        self.folder, self.manifest, self.frames, self.teacher = folder, plan, frames, teacher
        self.batch_size, self.workers = batch_size, workers
        self.process, self.processes = process, processes

    # 1. By the main process alone

    def prepare(self, free_bytes: int | None = None, report: Callable[[str], None] = print) -> None:
        """Refuses what cannot be, before anything is computed, and leaves the manifest."""
        begun = (self.folder / MANIFEST).is_file()
        if begun:
            self.adopt(Manifest.load(self.folder))
        elif self.folder.is_dir() and any(path.name != PROJECTION for path in self.visible()):
            raise UserError(f"{self.folder} is not empty and no feature cache: name a new folder")
        done = finished_shards(self.folder, self.manifest) if begun else set()
        check_space(self.folder, self.manifest, done, free_bytes, report)
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_stale(self.folder)
        if not begun:
            if self.manifest.storage == "projected":
                self.make_projection(report)
            self.manifest.save(self.folder)
        (self.folder / SHARDS).mkdir(exist_ok=True)
        remove_stale(self.folder / SHARDS)

    def visible(self) -> Iterator[Path]:
        return (path for path in self.folder.iterdir() if not path.name.startswith("."))

    def adopt(self, begun: Manifest) -> None:
        """Goes on with what is there, if it is the same cache but for the projection, which was made then."""
        planned = self.manifest.with_projection_of(begun)
        if differences := begun.differences(planned):
            raise UserError(f"{self.folder} is another cache, with {'; '.join(differences)}: name a new folder")
        self.manifest = begun

    def make_projection(self, report: Callable[[str], None]) -> None:
        plan = self.manifest
        draw = torch.Generator().manual_seed(PROJECTION_SEED)
        chosen = torch.randperm(plan.rows, generator=draw)[:PROJECTION_FRAMES].sort().values.tolist()
        batches = [chosen[start : start + self.batch_size] for start in range(0, len(chosen), self.batch_size)]
        moment = SecondMoment(plan.layers, plan.channels)
        for pictures in tqdm(self.read(batches), desc="projection", total=len(batches), disable=None, leave=False):
            moment.add(self.features(pictures).maps)
        projections = moment.principal_components(plan.width)
        projections.save(self.folder)
        for layer, kept in projections.kept.items():
            report(f"layer {layer:3d}  {plan.width} of {plan.channels} dimensions keep {kept:.2%} of the variance")
        self.manifest = replace(
            plan, projection=file_digest(self.folder), kept=tuple(projections.kept[layer] for layer in plan.layers)
        )

    # 2. By every process

    def write(self) -> None:
        self.manifest = Manifest.load(self.folder)
        matrices = load_matrices(self.folder, self.manifest.projection) if self.manifest.projection else {}
        self.matrices = {layer: matrix.to(self.teacher.device) for layer, matrix in matrices.items()}
        done = finished_shards(self.folder, self.manifest)
        mine = [number for number in range(self.process, self.manifest.shards, self.processes) if number not in done]
        batches = {number: self.batches(number) for number in mine}
        reading = self.read([batch for shard in batches.values() for batch in shard])
        before = sum(len(self.manifest.shard_rows(number)) for number in done)
        quiet = None if self.process == 0 else True
        bar = tqdm(total=self.manifest.rows, initial=before, desc="frames", unit="", disable=quiet)
        with bar, ThreadPoolExecutor(max_workers=1) as disk:
            writing: Future | None = None  # the shard before, while the teacher goes on
            for number, shard in batches.items():
                parts = []
                for batch in shard:
                    parts.append(self.encoded(next(reading), batch))
                    self.show(bar, rows_in_work=batch.stop - shard[0].start)
                stored = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                if writing:
                    writing.result()
                writing = disk.submit(write_shard, self.folder, self.manifest, number, stored)
            if writing:
                writing.result()
            # 3. By the main process alone
            while self.process == 0 and self.show(bar) < self.manifest.rows:
                time.sleep(POLL_SECONDS)

    def batches(self, shard: int) -> list[range]:
        rows = self.manifest.shard_rows(shard)
        return [
            range(start, min(start + self.batch_size, rows.stop))
            for start in range(rows.start, rows.stop, self.batch_size)
        ]

    def read(self, batches: list[range] | list[list[int]]) -> Iterator[list[Tensor]]:
        """The pictures of each batch in turn."""
        workers = min(self.workers, len(batches))
        context = "spawn" if workers else None
        data = Batches(self.frames, batches)
        for read in DataLoader(data, batch_size=None, num_workers=workers, multiprocessing_context=context):
            if isinstance(read, Exception):
                raise read
            yield read

    def features(self, pictures: list[Tensor]) -> Features:
        """On the grid of the cache."""
        features = self.teacher.features(scene_pictures(pictures, self.teacher), self.manifest.layers)
        if features.grid == self.manifest.grid:
            return features
        maps = {
            layer: register_features(found.float(), features.grid, self.manifest.grid, code_weight=0)
            for layer, found in features.maps.items()
        }
        return Features(maps, self.manifest.grid)

    def encoded(self, pictures: list[Tensor], batch: range) -> dict[str, Tensor]:
        """As it is stored, on the CPU: (batch, layers, cameras, ...)."""
        parts, maps = [], self.features(pictures).maps
        for layer in self.manifest.layers:
            projected = maps[layer].float() @ self.matrices[layer] if self.matrices else maps[layer]
            parts.append(encode(projected, self.manifest.storage))
            if not all(stored.isfinite().all() for stored in parts[-1].values()):
                raise UserError(
                    f"{self.teacher.card.name} gives numbers that are not finite, or too large to store, at layer "
                    f"{layer} for one of the frames {batch.start} to {batch.stop - 1}: try --dtype float32"
                )
        return {name: torch.stack([part[name] for part in parts], dim=1).cpu() for name in parts[0]}

    def show(self, bar: tqdm, rows_in_work: int = 0) -> int:
        """The rows that all processes have finished, and those of this one's shard."""
        if self.process:
            return 0
        shards = (number for number in range(self.manifest.shards) if shard_path(self.folder, number).is_file())
        finished = sum(len(self.manifest.shard_rows(number)) for number in shards)
        bar.n = finished + rows_in_work
        bar.refresh()
        return finished


def check_space(
    folder: Path, manifest: Manifest, done: set[int], free_bytes: int | None, report: Callable[[str], None]
) -> None:
    """Says what the cache needs, and refuses when the disk has less."""
    there = next(parent for parent in (folder, *folder.resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free if free_bytes is None else free_bytes
    rows = manifest.rows - sum(len(manifest.shard_rows(number)) for number in done)
    needed = rows * manifest.row_bytes
    if manifest.storage == "projected" and manifest.projection is None:
        needed += len(manifest.layers) * manifest.channels * manifest.width * torch.float32.itemsize
    sizes = f"{in_units(manifest.row_bytes)} a frame, {in_units(needed)} for {rows:,} frames"
    if needed > free:
        raise UserError(
            f"the cache needs {sizes}, and {there} has {in_units(free)} free: "
            "choose another folder, --storage int8 or projected, fewer layers, or a smaller --grid"
        )
    report(f"disk       {sizes}; {in_units(free)} free")


def in_units(size: int) -> str:
    """Bytes for people, in decimal units."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
