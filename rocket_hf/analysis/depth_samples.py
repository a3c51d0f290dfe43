"""Frames with known depth for depth probes, split into training, validation and held-out episodes.

Shapes: N frames, V cameras, S side of the policy's square image, T patches of a camera (rows x columns).
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from rocket_hf.errors import UserError
from rocket_hf.modeling.image_resizing import RESIZE_METHODS
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.strict_config import suggest_name
from rocket_hf.rgbd_dataset import RgbdFrames
from rocket_hf.teachers.pretraining.losses import FARTHEST, NEAREST, is_valid_depth
from rocket_hf.teachers.teacher import Grid

TRAIN, VALIDATION, TEST = "training", "validation", "test"
VALIDATION_SHARE = 0.2  # of the episodes that are not held out
LOG_NEAREST, LOG_FARTHEST = float(np.log(NEAREST)), float(np.log(FARTHEST))
MIN_EPISODES = MIN_SAMPLES = 4


@dataclass
class DepthSamples:
    """Frames with depth, held in memory: 0.2 MB per frame with two cameras of 128 pixels."""

    cameras: tuple[str, ...]
    images: Tensor  # (N, V, 3, H, W) uint8
    depth: Tensor  # (N, V, H, W) float32, meters
    states: Tensor  # (N, state)
    tasks: list[str]  # N
    episodes: list[int]  # N
    parts: list[str]  # N, of `TRAIN`, `VALIDATION`, `TEST`

    def __len__(self) -> int:
        return len(self.episodes)

    def rows(self, part: str) -> list[int]:
        return [row for row, own in enumerate(self.parts) if own == part]

    def camera_index(self, camera: str) -> int:
        if camera not in self.cameras:
            raise UserError(
                f"the policy's camera {camera!r} has no depth in the dataset: {suggest_name(camera, self.cameras)}"
            )
        return self.cameras.index(camera)


def read_samples(
    frames: RgbdFrames, samples: int, held_out_tasks: Collection[str], held_out_share: float
) -> DepthSamples:
    """Read `samples` frames, evenly spread over the dataset.

    `held_out_share` is the share of episodes for testing; it is used only if `held_out_tasks` is empty.
    """
    if samples < MIN_SAMPLES:
        raise UserError(f"a depth probe needs at least {MIN_SAMPLES} samples (hundreds are better): raise --samples")
    parts = assign_parts(task_by_episode(frames), held_out_tasks, held_out_share)
    indices = np.linspace(0, len(frames) - 1, min(samples, len(frames))).round().astype(int).tolist()
    if missing := {TRAIN, VALIDATION, TEST} - {parts[int(frames.episodes[index])] for index in indices}:
        raise UserError(
            f"{samples} samples are too few, because they contain no {missing.pop()} frame: raise --samples"
        )
    selected = [frames[index] for index in tqdm(indices, desc="frames", disable=None, leave=False)]
    return DepthSamples(
        frames.cameras,
        torch.stack([frame.images for frame in selected]),
        torch.stack([frame.depth for frame in selected]),
        frames.states[indices],
        [frame.task for frame in selected],
        [frame.episode for frame in selected],
        [parts[frame.episode] for frame in selected],
    )


def task_by_episode(frames: RgbdFrames) -> dict[int, str]:
    return dict(zip(frames.episodes.tolist(), frames.tasks, strict=True))


def assign_parts(tasks: dict[int, str], held_out_tasks: Collection[str], held_out_share: float) -> dict[int, str]:
    """Return the part of each episode. Test episodes are those of the held-out tasks, or a share of each task's."""
    for task in sorted(set(held_out_tasks) - set(tasks.values())):
        raise UserError(f"the dataset has no task {task!r} to hold out: {suggest_name(task, set(tasks.values()))}")
    if not 0 < held_out_share < 1:
        raise UserError(f"--held-out-share must be between 0 and 1, got {held_out_share}")
    by_task = sorted(tasks, key=lambda episode: (tasks[episode], episode))
    test = [episode for episode in by_task if tasks[episode] in held_out_tasks] or take_share(by_task, held_out_share)
    rest = [episode for episode in by_task if episode not in test]
    validation = take_share(rest, VALIDATION_SHARE)
    if not test or not validation or len(rest) == len(validation):
        raise UserError(
            f"{len(test)} of {len(tasks)} episodes are held out, but a depth probe needs at least 1 test episode and "
            f"{MIN_EPISODES - 1} other episodes: record more episodes, or hold out others"
        )
    return {episode: TEST if episode in test else VALIDATION if episode in validation else TRAIN for episode in by_task}


def take_share(episodes: Sequence[int], share: float) -> list[int]:
    """Return evenly spaced episodes, as many as `share` of them."""
    counts = [int(share * number + 0.5) for number in range(len(episodes) + 1)]
    return [episode for episode, (one, two) in zip(episodes, itertools.pairwise(counts), strict=True) if two > one]


# Depth in the policy's image


def resized_log_depth(depth: Tensor, processor: RocketProcessor) -> tuple[Tensor, Tensor]:
    """Convert depth in meters (N, V, H, W) to log-depth in the policy's image and pixel weights, each (N, V, S, S).

    Depth is resized exactly as the processor resizes images, including letterbox bars, so that both are aligned.
    Pixels without a depth have weight 0.
    """
    counts = is_valid_depth(depth).float()
    scaled = (depth.clamp(NEAREST, FARTHEST).log() - LOG_NEAREST) / (LOG_FARTHEST - LOG_NEAREST)
    both = torch.stack([scaled * counts, counts], dim=2).flatten(0, 1)  # (N x V, 2, H, W) in [0, 1]
    value, weight = RESIZE_METHODS[processor.resize](both, processor.image_size).unflatten(0, depth.shape[:2]).unbind(2)
    return value / weight.clamp_min(1e-6) * (LOG_FARTHEST - LOG_NEAREST) + LOG_NEAREST, weight


def log_depth_of_patches(depth: Tensor, processor: RocketProcessor, grid: Grid, cells_per_side: int = 1) -> Tensor:
    """Return the mean log-depth of each cell, (N, V, T, cells of a patch); NaN if over half of a cell is unknown."""
    value, weight = resized_log_depth(depth, processor)
    cells = grid[0] * cells_per_side, grid[1] * cells_per_side
    weights = F.adaptive_avg_pool2d(weight, cells)
    mean = F.adaptive_avg_pool2d(value * weight, cells) / weights.clamp_min(1e-6)
    return maps_to_patches(torch.where(weights >= 0.5, mean, torch.nan), cells_per_side)


def maps_to_patches(maps: Tensor, cells_per_side: int) -> Tensor:
    """Convert (..., rows x cells_per_side, columns x cells_per_side) to (..., T, cells of a patch)."""
    size = cells_per_side
    return maps.unfold(-2, size, size).unfold(-2, size, size).flatten(-2).flatten(-3, -2)


def patches_to_maps(patches: Tensor, grid: Grid) -> Tensor:
    """Convert the cells of patches back to maps (the inverse of `maps_to_patches`)."""
    size = round(patches.shape[-1] ** 0.5)
    cells = patches.unflatten(-1, (size, size)).unflatten(-3, grid)  # (..., rows, columns, size, size)
    return cells.transpose(-3, -2).flatten(-2).flatten(-3, -2)
