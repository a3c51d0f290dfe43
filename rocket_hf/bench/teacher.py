"""Benchmark of teacher features: at the teacher's and the camera's resolution, at half depth, and from a feature cache.

The teacher is a VGGT with 8 layers (8 frame blocks and 8 global blocks) after a patch encoder with 4 blocks; a sample
has two cameras. All modes are compared with "full": all blocks at 518 pixels, with all layers kept.
"""

import ctypes
import statistics
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from rocket_hf.bench.measure import Job, interleaved, median_ratio, peak_memory
from rocket_hf.bench.noise_frames import NoiseFrames
from rocket_hf.teachers.cache_writer import CacheWriter, plan_cache
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.vggt import VggtAggregator, VggtConfig, VggtTeacher, vggt_card

DEPTH, PATCH_ENCODER_DEPTH, WIDTH, HEADS = 8, 4, 256, 4
TEACHER_SIZE, CAMERA_SIZE, CAMERAS = 518, 224, ("front", "wrist")
ALL_LAYERS, SELECTED_LAYERS = tuple(range(1, DEPTH + 1)), tuple(range(2, DEPTH + 1, 2))
ROWS = 16  # rows of the cache: more than there are rounds, so that every round reads a new row
THREADS = 1  # several threads would wait for each other on a busy machine, and waiting counts as CPU time
M_MMAP_THRESHOLD = -3  # parameter of glibc's mallopt
# Resolution and layers of each mode. "cache" is read from a cache of all layers at the camera's resolution.
MODES: dict[str, tuple[str, tuple[int, ...]] | None] = {
    "full": ("teacher", ALL_LAYERS),
    "chosen": ("teacher", SELECTED_LAYERS),
    "half_depth": ("teacher", ALL_LAYERS[: DEPTH // 2]),
    "native": ("camera", ALL_LAYERS),
    "cache": None,
}


def noise_frames() -> NoiseFrames:
    return NoiseFrames(CAMERAS, CAMERA_SIZE, ROWS)


def create_teacher(resolution: str) -> VggtTeacher:
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


def create_teacher_job(mode: str) -> Job:
    """Create a job that returns the features of one sample, from its images or from the cache."""
    torch.set_num_threads(THREADS)
    live = MODES[mode]
    if live is None:
        return cache_job()
    resolution, layers = live
    teacher, images = create_teacher(resolution), torch.stack(noise_frames().read_images([0]), dim=1)
    return lambda: teacher.features(images, layers)


def create_exact_teacher_job(mode: str) -> Job:
    """Create a job that returns large tensors to the system when they are freed, at the cost of time.

    Its peak memory is then what is needed at the same time, without memory that the allocator keeps for later.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    return create_teacher_job(mode)


def cache_job() -> Job:
    """Create a job that reads one row of a cache, a new one each time, and decodes it as a batch."""
    temporary = tempfile.TemporaryDirectory()
    frames, teacher, folder = noise_frames(), create_teacher("camera"), Path(temporary.name) / "cache"
    writer = CacheWriter(folder, plan_cache(frames, teacher, ALL_LAYERS), frames, teacher)
    writer.prepare(report=lambda line: None)
    writer.write()
    cache, rows = FeatureCache(folder), count()

    def job() -> Any:
        assert temporary  # keeps the folder as long as the job exists
        return cache.decode(default_collate([cache.read(next(rows) % ROWS)]))

    return job


def measure() -> dict[str, Any]:
    seconds = interleaved({mode: create_teacher_job(mode) for mode in MODES})
    memory = {mode: peak_memory(create_exact_teacher_job, mode) for mode in MODES}
    ratios = {mode: round(median_ratio(seconds[mode], seconds["full"]), 4) for mode in MODES if mode != "full"}
    return {f"{mode}_to_full": ratio for mode, ratio in ratios.items()} | {
        "cpu_seconds": {mode: round(statistics.median(times), 4) for mode, times in seconds.items()},
        "peak_memory_mib": {mode: round(size / 2**20, 1) for mode, size in memory.items()},
    }


def report(figures: dict[str, Any]) -> str:
    names = {
        "full": f"{TEACHER_SIZE} px, all {DEPTH} layers kept",
        "chosen": f"{TEACHER_SIZE} px, {len(SELECTED_LAYERS)} layers kept",
        "half_depth": f"{TEACHER_SIZE} px, up to layer {DEPTH // 2}",
        "native": f"{CAMERA_SIZE} px, all {DEPTH} layers kept",
        "cache": f"read from the cache, {CAMERA_SIZE} px",
    }
    rows = [
        f"one sample of {len(CAMERAS)} cameras of {CAMERA_SIZE} px; VGGT with {DEPTH} layers of width {WIDTH} after a "
        f"patch encoder with {PATCH_ENCODER_DEPTH} blocks; float32, {THREADS} CPU thread, medians of five rounds",
        "",
        f"{'':28}{'CPU seconds':>12}{'peak MiB':>10}{'ratio':>14}",
    ]
    for mode, name in names.items():
        ratio = figures.get(f"{mode}_to_full", 1.0)
        rows.append(
            f"{name:28}{figures['cpu_seconds'][mode]:12.4f}{figures['peak_memory_mib'][mode]:10.1f}{ratio:14.4f}"
        )
    return "\n".join(rows)
