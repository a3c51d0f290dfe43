"""Recorded scenes in memory, and the batches that are drawn from them: cameras and colors by chance.

Shapes: N scenes recorded, V cameras of a recording; B scenes of a batch, S frames of a scene.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from ..frozen import IMAGENET_MEAN, IMAGENET_STD
from .geometry import angles_of_view, quaternions, relative_poses
from .losses import Truth

if TYPE_CHECKING:
    from rocket_hf.rgbd_dataset import RgbdFrames

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.15, 0.2, 0.3, 0.3  # the largest changes; the hue's in radians
GRAY = torch.tensor([0.299, 0.587, 0.114])


@dataclass
class Scenes:
    images: Tensor  # (N, V, 3, H, W) uint8
    depth: Tensor  # (N, V, H, W) float16, meters: to half a thousandth of themselves
    angles: Tensor  # (N, V) of view, in radians
    poses: Tensor  # (N, V, 4, 4), camera to world
    tasks: list[str]  # N

    def __len__(self) -> int:
        return len(self.images)

    def of(self, rows: Tensor, cameras: Tensor) -> "Scenes":
        """Scenes (B,) with cameras (B, S) of each, in that order."""
        place = rows[:, None], cameras
        tasks = [self.tasks[row] for row in rows.tolist()]
        return Scenes(self.images[place], self.depth[place], self.angles[place], self.poses[place], tasks)

    def where_task(self, tasks: set[str], is_in: bool) -> "Scenes":
        rows = torch.tensor([row for row, task in enumerate(self.tasks) if (task in tasks) == is_in])
        cameras = torch.arange(self.images.shape[1]).expand(len(rows), -1)
        return self.of(rows, cameras)

    def frames(self) -> Tensor:
        """As the teacher sees them: (N, V, 3, H, W), normalized."""
        return normalized(self.images.float() / 255)

    def truth(self) -> Truth:
        relative = relative_poses(self.poses)
        turned = quaternions(relative[..., :3, :3])
        return Truth(self.depth.float(), relative[..., :3, 3], turned, self.angles)


def normalized(pictures: Tensor) -> Tensor:
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pictures - mean) / deviation


def read_scenes(frames: "RgbdFrames", every: int) -> Scenes:
    """One frame of so many: neighbors in an episode are alike."""
    found = [frames[index] for index in tqdm(range(0, len(frames), every), desc="frames", disable=None, leave=False)]
    images, depth, intrinsics, poses = (
        torch.stack([getattr(each, name) for each in found]) for name in ("images", "depth", "intrinsics", "poses")
    )
    angles = angles_of_view(intrinsics.float(), images.shape[-2])
    return Scenes(images, depth.half(), angles, poses.float(), [each.task for each in found])


def draw_batch(scenes: Scenes, size: int, frames: int, generator: Generator) -> tuple[Tensor, Truth]:
    """Normalized frames (B, S, 3, H, W) and their truth: random scenes, cameras in random order."""
    rows = torch.randint(len(scenes), (size,), generator=generator)
    order = torch.rand(size, scenes.images.shape[1], generator=generator).argsort(dim=1)
    batch = scenes.of(rows, order[:, :frames])
    return normalized(recolored(batch.images.float() / 255, generator)), batch.truth()


def recolored(pictures: Tensor, generator: Generator) -> Tensor:
    """Pictures (B, S, 3, H, W) in [0, 1], each with a brightness, contrast, saturation and hue of its own."""
    drawn = 2 * torch.rand(*pictures.shape[:2], 4, generator=generator) - 1  # (B, S, 4), -1..1
    brightness, contrast, saturation, hue = (drawn * torch.tensor([BRIGHTNESS, CONTRAST, SATURATION, HUE])).unbind(-1)
    mixed = torch.einsum("bsij,bsjhw->bsihw", color_mixers(1 + saturation, hue), pictures)
    middle = mixed.mean(dim=(-3, -2, -1), keepdim=True)
    changed = (mixed - middle) * (1 + contrast)[..., None, None, None] + middle + brightness[..., None, None, None]
    return changed.clamp(0, 1)


def color_mixers(saturation: Tensor, hue: Tensor) -> Tensor:
    """Matrices (..., 3, 3) that keep every gray, scale what a color differs from it, and turn that about the axis of
    grays (Rodrigues' formula)."""
    axis = torch.full((3,), 3**-0.5)
    crossed = torch.linalg.cross(axis.expand(3, 3), torch.eye(3)).T
    turn = torch.eye(3) + hue.sin()[..., None, None] * crossed + (1 - hue.cos())[..., None, None] * crossed @ crossed
    gray = GRAY.expand(3, 3)
    return gray + saturation[..., None, None] * turn @ (torch.eye(3) - gray)
