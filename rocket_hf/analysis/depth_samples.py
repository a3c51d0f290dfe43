"""Frames with known depth to probe layers with, and which of them a probe may learn from.

Shapes: N frames, V cameras, S side of the policy's square picture, T patches of a camera (rows x columns).
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
from rocket_hf.modeling.processing_rocket import RESIZES, RocketProcessor
from rocket_hf.modeling.strict_config import nearest
from rocket_hf.rgbd_dataset import RgbdFrames
from rocket_hf.teachers.pretraining.losses import FARTHEST, NEAREST, seen
from rocket_hf.teachers.teacher import Grid

LEARN, CHOOSE, TEST = "learn", "choose", "test"  # weights, how strongly to hold them small, the error that is told
CHOOSING = 0.2  # of the episodes that are not held out
LOW, HIGH = float(np.log(NEAREST)), float(np.log(FARTHEST))
FEWEST = 4  # episodes


@dataclass
class DepthSamples:
    """In memory: 0.2 MB a frame of two cameras of 128 pixels."""

    cameras: tuple[str, ...]
    images: Tensor  # (N, V, 3, H, W) uint8
    depth: Tensor  # (N, V, H, W) float32, meters
    states: Tensor  # (N, state)
    tasks: list[str]  # N
    episodes: list[int]  # N
    parts: list[str]  # N, of `LEARN`, `CHOOSE`, `TEST`

    def __len__(self) -> int:
        return len(self.episodes)

    def rows(self, part: str) -> list[int]:
        return [row for row, own in enumerate(self.parts) if own == part]

    def of(self, camera: str) -> int:
        if camera not in self.cameras:
            raise UserError(f"the policy's camera {camera!r} has no depth here: {nearest(camera, self.cameras)}")
        return self.cameras.index(camera)


def read_samples(frames: RgbdFrames, samples: int, held_out_tasks: Collection[str], share: float) -> DepthSamples:
    """So many frames, evenly spread over all. `share`: of the episodes that are held out where no task is."""
    if samples < FEWEST:
        raise UserError(f"a probe needs at least {FEWEST} samples, and better hundreds: raise --samples")
    parts = split(task_of_episode(frames), held_out_tasks, share)
    places = np.linspace(0, len(frames) - 1, min(samples, len(frames))).round().astype(int).tolist()
    if missing := {LEARN, CHOOSE, TEST} - {parts[int(frames.episodes[place])] for place in places}:
        raise UserError(f"{samples} samples leave no frame to {missing.pop()} with: raise --samples")
    found = [frames[place] for place in tqdm(places, desc="frames", disable=None, leave=False)]
    return DepthSamples(
        frames.cameras,
        torch.stack([frame.images for frame in found]),
        torch.stack([frame.depth for frame in found]),
        frames.states[places],
        [frame.task for frame in found],
        [frame.episode for frame in found],
        [parts[frame.episode] for frame in found],
    )


def task_of_episode(frames: RgbdFrames) -> dict[int, str]:
    return dict(zip(frames.episodes.tolist(), frames.tasks, strict=True))


def split(tasks: dict[int, str], held_out_tasks: Collection[str], share: float) -> dict[int, str]:
    """The part of each episode: those of the held-out tasks, or a share of each task's, are for the test."""
    for task in sorted(set(held_out_tasks) - set(tasks.values())):
        raise UserError(f"the dataset has no task {task!r} to hold out: {nearest(task, set(tasks.values()))}")
    if not 0 < share < 1:
        raise UserError(f"the share of episodes to hold out lies between 0 and 1, got {share}")
    by_task = sorted(tasks, key=lambda episode: (tasks[episode], episode))
    test = [episode for episode in by_task if tasks[episode] in held_out_tasks] or spread(by_task, share)
    rest = [episode for episode in by_task if episode not in test]
    choose = spread(rest, CHOOSING)
    if not test or not choose or len(rest) == len(choose):
        raise UserError(
            f"of {len(tasks)} episodes {len(test)} are held out, but a probe needs one at least to be tested on and "
            f"{FEWEST - 1} others to learn from: record more episodes, or hold out others"
        )
    return {episode: TEST if episode in test else CHOOSE if episode in choose else LEARN for episode in by_task}


def spread(episodes: Sequence[int], share: float) -> list[int]:
    """That share of them, evenly."""
    counts = [int(share * number + 0.5) for number in range(len(episodes) + 1)]
    return [episode for episode, (one, two) in zip(episodes, itertools.pairwise(counts), strict=True) if two > one]


# Depth as a policy would see it


def resized_log_depth(depth: Tensor, processor: RocketProcessor) -> tuple[Tensor, Tensor]:
    """Log-depths (N, V, H, W) of meters, in the policy's own picture, and how much of each pixel counts; (N, V, S, S).

    The processor resizes them as it does colors, so that they lie where the policy sees them, bars and all.
    """
    counts = seen(depth).float()
    between = (depth.clamp(NEAREST, FARTHEST).log() - LOW) / (HIGH - LOW)
    both = torch.stack([between * counts, counts], dim=2).flatten(0, 1)  # (N x V, 2, H, W) in [0, 1]
    value, weight = RESIZES[processor.resize](both, processor.image_size).unflatten(0, depth.shape[:2]).unbind(2)
    return value / weight.clamp_min(1e-6) * (HIGH - LOW) + LOW, weight


def patch_log_depth(depth: Tensor, processor: RocketProcessor, grid: Grid, detail: int = 1) -> Tensor:
    """The mean over each cell, (N, V, T, detail x detail cells of a patch); NaN where less than half of it counts."""
    value, weight = resized_log_depth(depth, processor)
    cells = grid[0] * detail, grid[1] * detail
    weights = F.adaptive_avg_pool2d(weight, cells)
    mean = F.adaptive_avg_pool2d(value * weight, cells) / weights.clamp_min(1e-6)
    return in_patches(torch.where(weights >= 0.5, mean, torch.nan), detail)


def in_patches(maps: Tensor, detail: int) -> Tensor:
    """(..., rows x detail, columns x detail) to (..., T, detail x detail)."""
    return maps.unfold(-2, detail, detail).unfold(-2, detail, detail).flatten(-2).flatten(-3, -2)


def as_maps(patches: Tensor, grid: Grid) -> Tensor:
    """The way back."""
    detail = round(patches.shape[-1] ** 0.5)
    cells = patches.unflatten(-1, (detail, detail)).unflatten(-3, grid)  # (..., rows, columns, detail, detail)
    return cells.transpose(-3, -2).flatten(-2).flatten(-3, -2)
