"""The pictures of a robot's cameras as frames of one scene, as a teacher sees them.

Features that are cached and features that are computed while training both start here, so they are the same.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rocket_hf.modeling.policy_interface import unit_range

from .teacher import Teacher


def scene_size(sizes: Sequence[tuple[int, int]], teacher: Teacher) -> tuple[int, int]:
    """The one size (height, width) at which the teacher sees all cameras: that of the largest."""
    return teacher.input_size(*max(sizes, key=lambda size: size[0] * size[1]))


def scene_pictures(images: Sequence[Tensor], teacher: Teacher) -> Tensor:
    """Cameras of any sizes, each (B, 3, H, W) of bytes or in [0, 1], as (B, V, 3, h, w) in [0, 1] on its device."""
    size = scene_size([(image.shape[-2], image.shape[-1]) for image in images], teacher)
    return torch.stack([resized(unit_range(image.to(teacher.device)), size) for image in images], dim=1)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 3, H, W) in [0, 1], enlarged as VGGT's own users do, or made smaller with antialiasing."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    smaller = size[0] < height or size[1] < width
    return F.interpolate(images, size=size, mode="bicubic", antialias=smaller, align_corners=False).clamp(0, 1)
