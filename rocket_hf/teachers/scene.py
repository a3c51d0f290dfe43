"""Camera images of a robot as frames of one scene: the input of a teacher.

Cached features and features computed during training both start here, so that they are identical.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rocket_hf.modeling.policy_interface import to_unit_range

from .teacher import Teacher


def scene_size(sizes: Sequence[tuple[int, int]], teacher: Teacher) -> tuple[int, int]:
    """Return the (height, width) to which all cameras are resized for the teacher: the size for the largest camera."""
    return teacher.input_size(*max(sizes, key=lambda size: size[0] * size[1]))


def scene_images(images: Sequence[Tensor], teacher: Teacher) -> Tensor:
    """Stack the images of cameras of any size on the teacher's device, resized to one size.

    images: one tensor (B, 3, H, W) per camera, uint8 or in [0, 1]. Returns (B, V, 3, h, w) in [0, 1].
    """
    size = scene_size([(image.shape[-2], image.shape[-1]) for image in images], teacher)
    return torch.stack([resize_images(to_unit_range(image.to(teacher.device)), size) for image in images], dim=1)


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images (N, 3, H, W) in [0, 1] with bicubic interpolation, as VGGT's users do; antialias when shrinking."""
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    shrinks = size[0] < height or size[1] < width
    return F.interpolate(images, size=size, mode="bicubic", antialias=shrinks, align_corners=False).clamp(0, 1)
