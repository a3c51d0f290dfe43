"""Fixtures of feature caches: a tiny VGGT as the teacher, and random images seeded by the frame's index."""

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
from rocket_hf.teachers.scene import scene_images
from rocket_hf.teachers.vggt import VggtAggregator, VggtTeacher, vggt_card
from tests.tiny_vggt import tiny_vggt_config

LAYERS = (1, 3, -1)
SIZES = {"top": (28, 56), "wrist": (30, 30)}
ROWS = 22


@dataclass
class RandomFrames:
    """Frame source with random images."""

    dataset: str = "you/robot"
    revision: str = "v1"
    fingerprint: str = "f" * 64
    sizes: dict[str, tuple[int, int]] = field(default_factory=lambda: dict(SIZES))
    rows: int = ROWS
    batches_until_kill: int | None = None  # after this many batches the process kills itself with SIGKILL

    def __len__(self) -> int:
        return self.rows

    def read_images(self, indices: Sequence[int]) -> list[Tensor]:
        if self.batches_until_kill is not None:
            if not self.batches_until_kill:
                os.kill(os.getpid(), signal.SIGKILL)
            self.batches_until_kill -= 1
        return [torch.stack([random_image(index, *size) for index in indices]) for size in self.sizes.values()]


def random_image(index: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(index)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def teacher() -> VggtTeacher:
    aggregator = VggtAggregator(tiny_vggt_config())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in aggregator.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return VggtTeacher(aggregator, vggt_card(aggregator.config, "tiny", "0" * 64, "apache-2.0"))


def plan_small_shards(teacher, frames=None, **settings) -> Manifest:
    """Plan a cache with four rows per shard."""
    plan = plan_cache(frames or RandomFrames(), teacher, LAYERS, **settings)
    return replace(plan, rows_per_shard=4)


def build_cache(folder: Path, teacher, frames=None, **settings) -> FeatureCache:
    frames = frames or RandomFrames()
    write_cache(folder, plan_small_shards(teacher, frames, **settings), frames, teacher)
    return FeatureCache(folder)


def write_cache(folder: Path, plan: Manifest, frames, teacher, process: int = 0, processes: int = 1) -> None:
    writer = CacheWriter(folder, plan, frames, teacher, batch_size=3, process=process, processes=processes)
    if process == 0:
        writer.prepare(report=lambda line: None)
    while not (folder / "manifest.json").exists():  # stands in for accelerate's barrier
        time.sleep(0.01)
    writer.write()


@pytest.fixture(scope="module")
def caches(teacher, tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("caches")
    for storage in ("bf16", "int8", "projected"):
        build_cache(root / storage, teacher, storage=storage, width=16)
    return {storage: root / storage for storage in ("bf16", "int8", "projected")}


@pytest.fixture(scope="module")
def live_features(teacher) -> dict[int, Tensor]:
    """Features of all frames, computed without a cache: (frames, cameras, patches, channels) for each layer."""
    images = RandomFrames().read_images(range(ROWS))
    return teacher.features(scene_images(images, teacher), LAYERS).maps


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
