"""Caches of drawn pictures: the teacher is a real VGGT, tiny, and a picture is drawn from the frame's index."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rocket_hf.teachers.cache_manifest import Manifest
from rocket_hf.teachers.cache_writer import CacheWriter, plan_cache
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.scene import scene_pictures
from rocket_hf.teachers.vggt import VggtAggregator, VggtTeacher, vggt_card
from rocket_hf.tiny import tiny_vggt_config

LAYERS = (1, 3, -1)
SIZES = {"top": (28, 56), "wrist": (30, 30)}
ROWS = 22


@dataclass
class DrawnFrames:
    dataset: str = "you/robot"
    revision: str = "v1"
    fingerprint: str = "f" * 64
    sizes: dict[str, tuple[int, int]] = field(default_factory=lambda: dict(SIZES))
    rows: int = ROWS
    batches_to_live: int | None = None  # then it kills its own process, as kill -9 does

    def __len__(self) -> int:
        return self.rows

    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        if self.batches_to_live is not None:
            if not self.batches_to_live:
                os.kill(os.getpid(), signal.SIGKILL)
            self.batches_to_live -= 1
        return [torch.stack([drawn(index, *size) for index in indices]) for size in self.sizes.values()]


def drawn(index: int, height: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(index)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=draw)


@pytest.fixture(scope="module")
def teacher() -> VggtTeacher:
    aggregator = VggtAggregator(tiny_vggt_config())
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in aggregator.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 2)
    return VggtTeacher(aggregator, vggt_card(aggregator.config, "tiny", "0" * 64, "apache-2.0"))


def planned(teacher, frames=None, **settings) -> Manifest:
    """Shards of four rows."""
    plan = plan_cache(frames or DrawnFrames(), teacher, LAYERS, **settings)
    return replace(plan, rows_per_shard=4)


def build(folder: Path, teacher, frames=None, **settings) -> FeatureCache:
    frames = frames or DrawnFrames()
    write(folder, planned(teacher, frames, **settings), frames, teacher)
    return FeatureCache(folder)


def write(folder: Path, plan: Manifest, frames, teacher, process: int = 0, processes: int = 1) -> None:
    writer = CacheWriter(folder, plan, frames, teacher, batch_size=3, process=process, processes=processes)
    if process == 0:
        writer.prepare(report=lambda line: None)
    while not (folder / "manifest.json").exists():  # what accelerate's barrier is for
        time.sleep(0.01)
    writer.write()


@pytest.fixture(scope="module")
def caches(teacher, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("caches")
    for storage in ("bf16", "int8", "projected"):
        build(root / storage, teacher, storage=storage, width=16)
    return {storage: root / storage for storage in ("bf16", "int8", "projected")}


@pytest.fixture(scope="module")
def live(teacher) -> dict[int, Tensor]:
    """All frames at once: (frames, cameras, patches, channels) by layer."""
    pictures = DrawnFrames().pictures(range(ROWS))
    return teacher.features(scene_pictures(pictures, teacher), LAYERS).maps


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
