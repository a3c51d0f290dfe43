"""Recorded scenes in memory, and random training batches: random scenes, cameras and color changes.

Shapes: N recorded scenes, V recorded cameras; B scenes of a batch, S frames of a scene.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from ..frozen import IMAGENET_MEAN, IMAGENET_STD
from .geometry import angles_of_view, quaternions, relative_poses
from .losses import GeometryTargets

if TYPE_CHECKING:
    from rocket_hf.rgbd_dataset import RgbdFrames

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.15, 0.2, 0.3, 0.3  # largest changes; the hue in radians
GRAY = torch.tensor([0.299, 0.587, 0.114])


@dataclass
class RgbdScenes:
    """Recorded scenes: images, depth and camera poses of the same moment."""

    images: Tensor  # (N, V, 3, H, W) uint8
    depth: Tensor  # (N, V, H, W) float16 in meters, precise to 0.05 %
    angles: Tensor  # (N, V), angle of view in radians
    poses: Tensor  # (N, V, 4, 4), camera to world
    tasks: list[str]  # (N)

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Tensor, cameras: Tensor) -> "RgbdScenes":
        """Return the scenes `rows` (B,) with the cameras (B, S) of each, in this order."""
        chosen = rows[:, None], cameras
        tasks = [self.tasks[row] for row in rows.tolist()]
        return RgbdScenes(self.images[chosen], self.depth[chosen], self.angles[chosen], self.poses[chosen], tasks)

    def select_tasks(self, tasks: set[str], is_in: bool) -> "RgbdScenes":
        """Return the scenes whose task is in `tasks`, or is not."""
        rows = torch.tensor([row for row, task in enumerate(self.tasks) if (task in tasks) == is_in])
        cameras = torch.arange(self.images.shape[1]).expand(len(rows), -1)
        return self.select(rows, cameras)

    def frames(self) -> Tensor:
        """Return the normalized images (N, V, 3, H, W), the input of the teacher."""
        return normalize(self.images.float() / 255)

    def targets(self) -> GeometryTargets:
        relative = relative_poses(self.poses)
        rotations = quaternions(relative[..., :3, :3])
        return GeometryTargets(self.depth.float(), relative[..., :3, 3], rotations, self.angles)


def normalize(images: Tensor) -> Tensor:
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / deviation


def read_scenes(frames: "RgbdFrames", stride: int) -> RgbdScenes:
    """Read every `stride`-th frame: adjacent frames of an episode are almost identical."""
    chosen = [frames[index] for index in tqdm(range(0, len(frames), stride), desc="frames", disable=None, leave=False)]
    images, depth, intrinsics, poses = (
        torch.stack([getattr(frame, name) for frame in chosen]) for name in ("images", "depth", "intrinsics", "poses")
    )
    angles = angles_of_view(intrinsics.float(), images.shape[-2])
    return RgbdScenes(images, depth.half(), angles, poses.float(), [frame.task for frame in chosen])


def draw_scene_batch(
    scenes: RgbdScenes, size: int, frames: int, generator: Generator
) -> tuple[Tensor, GeometryTargets]:
    """Draw normalized frames (B, S, 3, H, W) and their targets: random scenes, with cameras in random order."""
    rows = torch.randint(len(scenes), (size,), generator=generator)
    order = torch.rand(size, scenes.images.shape[1], generator=generator).argsort(dim=1)
    batch = scenes.select(rows, order[:, :frames])
    return normalize(jitter_colors(batch.images.float() / 255, generator)), batch.targets()


def jitter_colors(images: Tensor, generator: Generator) -> Tensor:
    """Change the brightness, contrast, saturation and hue of each image (B, S, 3, H, W) in [0, 1] at random."""
    random = 2 * torch.rand(*images.shape[:2], 4, generator=generator) - 1  # (B, S, 4) in -1..1
    brightness, contrast, saturation, hue = (random * torch.tensor([BRIGHTNESS, CONTRAST, SATURATION, HUE])).unbind(-1)
    mixed = torch.einsum("bsij,bsjhw->bsihw", color_matrices(1 + saturation, hue), images)
    middle = mixed.mean(dim=(-3, -2, -1), keepdim=True)
    changed = (mixed - middle) * (1 + contrast)[..., None, None, None] + middle + brightness[..., None, None, None]
    return changed.clamp(0, 1)


def color_matrices(saturation: Tensor, hue: Tensor) -> Tensor:
    """Return matrices (..., 3, 3) that keep grays, and that scale and rotate the difference of a color from its gray.

    The rotation is about the axis of grays (Rodrigues' formula).
    """
    axis = torch.full((3,), 3**-0.5)
    crossed = torch.linalg.cross(axis.expand(3, 3), torch.eye(3)).T
    rotation = (
        torch.eye(3) + hue.sin()[..., None, None] * crossed + (1 - hue.cos())[..., None, None] * crossed @ crossed
    )
    gray = GRAY.expand(3, 3)
    return gray + saturation[..., None, None] * rotation @ (torch.eye(3) - gray)
