"""What a teacher costs: at its own resolution, at the camera's, stopped half-way, and read from the feature cache.

A VGGT of 8 layers (8 blocks within frames, 8 across them) behind a patch encoder of 4 blocks sees two cameras of one
sample. All are compared with the plain way: every block, at 518 pixels, every layer kept.
"""

import ctypes
import statistics
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from rocket_hf.bench.measure import Job, interleaved, median_ratio, peak_memory
from rocket_hf.teachers.cache_writer import CacheWriter, plan_cache
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.vggt import VggtAggregator, VggtConfig, VggtTeacher, vggt_card

DEPTH, PATCH_ENCODER_DEPTH, WIDTH, HEADS = 8, 4, 256, 4
TEACHER_SIZE, CAMERA_SIZE, CAMERAS = 518, 224, ("front", "wrist")
EVERY, CHOSEN = tuple(range(1, DEPTH + 1)), tuple(range(2, DEPTH + 1, 2))
ROWS = 16  # of the cache: more than there are rounds, so that each reads one that was not read before
THREADS = 1  # more would wait for each other on a busy machine, and waiting counts as CPU time
M_MMAP_THRESHOLD = -3  # of glibc's mallopt
# By name: the resolution and the layers of a live run; none for the cache, which holds every layer at the camera's.
WAYS: dict[str, tuple[str, tuple[int, ...]] | None] = {
    "full": ("teacher", EVERY),
    "chosen": ("teacher", CHOSEN),
    "half_depth": ("teacher", EVERY[: DEPTH // 2]),
    "native": ("camera", EVERY),
    "cache": None,
}


class NoiseFrames:
    """A dataset of noise."""

    dataset, revision, fingerprint = "noise", "local", "0"

    def __init__(self) -> None:
        self.sizes = dict.fromkeys(CAMERAS, (CAMERA_SIZE, CAMERA_SIZE))

    def __len__(self) -> int:
        return ROWS

    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        return [torch.stack([noise(index, camera) for index in indices]) for camera in range(len(CAMERAS))]


def noise(index: int, camera: int) -> Tensor:
    draw = torch.Generator().manual_seed(len(CAMERAS) * index + camera)
    return torch.randint(0, 256, (3, CAMERA_SIZE, CAMERA_SIZE), generator=draw, dtype=torch.uint8)


def make_teacher(resolution: str) -> VggtTeacher:
    torch.manual_seed(0)
    config = VggtConfig(
        img_size=TEACHER_SIZE,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=HEADS,
        patch_embed_depth=PATCH_ENCODER_DEPTH,
        patch_embed_heads=HEADS,
    )
    return VggtTeacher(VggtAggregator(config), vggt_card(config, "random", "0", "unknown"), resolution)


def make_job(way: str) -> Job:
    """The features of one sample, from its pictures or from the cache."""
    torch.set_num_threads(THREADS)
    live = WAYS[way]
    if live is None:
        return cache_job()
    resolution, layers = live
    teacher, pictures = make_teacher(resolution), torch.stack(NoiseFrames().pictures([0]), dim=1)
    return lambda: teacher.features(pictures, layers)


def make_exact_job(way: str) -> Job:
    """One whose large tensors go back to the system as soon as they are freed, so that the peak is what is needed at
    once and not what the allocator keeps for later. It costs time."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    return make_job(way)


def cache_job() -> Job:
    """Reads a row, each time another one, makes a batch of it and decodes that."""
    holder = tempfile.TemporaryDirectory()
    frames, teacher, folder = NoiseFrames(), make_teacher("camera"), Path(holder.name) / "cache"
    writer = CacheWriter(folder, plan_cache(frames, teacher, EVERY), frames, teacher)
    writer.prepare(report=lambda line: None)
    writer.write()
    cache, rows = FeatureCache(folder), count()

    def job() -> Any:
        assert holder  # the folder lasts as long as the job
        return cache.decode(default_collate([cache.read(next(rows) % ROWS)]))

    return job


def measure() -> dict[str, Any]:
    seconds = interleaved({way: make_job(way) for way in WAYS})
    memory = {way: peak_memory(make_exact_job, way) for way in WAYS}
    ratios = {f"{way}_to_full": round(median_ratio(seconds[way], seconds["full"]), 4) for way in WAYS if way != "full"}
    return ratios | {
        "cpu_seconds": {way: round(statistics.median(taken), 4) for way, taken in seconds.items()},
        "peak_memory_mib": {way: round(taken / 2**20, 1) for way, taken in memory.items()},
    }


def report(figures: dict[str, Any]) -> str:
    names = {
        "full": f"{TEACHER_SIZE} px, all {DEPTH} layers kept",
        "chosen": f"{TEACHER_SIZE} px, {len(CHOSEN)} layers kept",
        "half_depth": f"{TEACHER_SIZE} px, stopped at layer {DEPTH // 2}",
        "native": f"{CAMERA_SIZE} px, all {DEPTH} layers kept",
        "cache": f"read from the cache, {CAMERA_SIZE} px",
    }
    rows = [
        f"one sample of {len(CAMERAS)} cameras of {CAMERA_SIZE} px; VGGT of {DEPTH} layers, width {WIDTH}, behind a "
        f"patch encoder of {PATCH_ENCODER_DEPTH} blocks; float32, {THREADS} CPU thread, medians of five rounds",
        "",
        f"{'':28}{'CPU seconds':>12}{'peak MiB':>10}{'to the first':>14}",
    ]
    for way, name in names.items():
        ratio = figures.get(f"{way}_to_full", 1.0)
        rows.append(f"{name:28}{figures['cpu_seconds'][way]:12.4f}{figures['peak_memory_mib'][way]:10.1f}{ratio:14.4f}")
    return "\n".join(rows)
