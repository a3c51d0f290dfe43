"""Camera images in any form as tensors, and resizing to the square images of a policy, on any device."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .finite_checks import check_image_range

PIL_WEIGHT_SCALE = 2**22  # Pillow computes with integers: weights are multiples of 1 / PIL_WEIGHT_SCALE
# Function that resizes images (B, C, H, W) with values in [0, 1] to (rows, columns).
Resample = Callable[[Tensor, tuple[int, int]], Tensor]


def bilinear(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize without antialiasing, as openpi and lerobot do."""
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False).clamp(0, 1)


def bilinear_antialiased(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size=size, mode="bilinear", antialias=True).clamp(0, 1)


def pil_bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize exactly as Pillow's `Image.resize(..., BICUBIC)` resizes uint8 images, on any device.

    The images are rounded to uint8 first. Pillow changes the width, then the height, and rounds to uint8 after each.
    torch's antialiased bicubic rounds neither its weights nor the image in between, and differs by up to 30 of 255
    levels at sharp edges.
    """
    dtype = torch.float32 if images.device.type == "mps" else torch.float64  # float32 is off by one level at times
    levels = (images * 255).round().to(dtype)
    rows, columns = size
    if levels.shape[-1] != columns:
        levels = round_to_uint8(levels @ bicubic_weights(levels.shape[-1], columns, levels.device).T)
    if levels.shape[-2] != rows:
        levels = round_to_uint8(bicubic_weights(levels.shape[-2], rows, levels.device) @ levels)
    return (levels / 255).to(images.dtype)


def round_to_uint8(levels: Tensor) -> Tensor:
    return (levels + 0.5).floor().clamp(0, 255)


@lru_cache(maxsize=64)
def bicubic_weights(source: int, target: int, device: torch.device) -> Tensor:
    """Return Pillow's weights (target, source) of bicubic resizing from `source` to `target` pixels.

    The cubic (a = -0.5) is widened by the scale when the image shrinks, cut to whole pixels, normalized, and rounded to
    22 binary digits.
    """
    scale = source / target
    widening, center = max(scale, 1.0), (torch.arange(target, dtype=torch.float64) + 0.5) * scale
    pixel = torch.arange(source)
    first, end = (center - 2 * widening + 0.5).int().clamp_min(0), (center + 2 * widening + 0.5).int().clamp_max(source)
    x = ((pixel - center[:, None] + 0.5) / widening).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = torch.where((pixel >= first[:, None]) & (pixel < end[:, None]), weights, 0.0)
    weights = weights / weights.sum(dim=1, keepdim=True)
    rounded = (weights * PIL_WEIGHT_SCALE + torch.where(weights < 0, -0.5, 0.5)).trunc()
    return (rounded / PIL_WEIGHT_SCALE).to(torch.float32 if device.type == "mps" else torch.float64).to(device)


def stretch(images: Tensor, size: int, resample: Resample = bilinear_antialiased) -> Tensor:
    """Resize to size x size, ignoring the aspect ratio."""
    if images.shape[-2:] == (size, size):
        return images
    return resample(images, (size, size))


def letterbox(images: Tensor, size: int, resample: Resample = bilinear) -> Tensor:
    """Resize with the aspect ratio kept and center between black bars, as openpi and lerobot's pi0 do."""
    resized = resize_longer_side(images, size, resample)
    missing_rows, missing_columns = size - resized.shape[-2], size - resized.shape[-1]
    left, top = missing_columns // 2, missing_rows // 2
    return F.pad(resized, (left, missing_columns - left, top, missing_rows - top))


def letterbox_top_left(images: Tensor, size: int, resample: Resample = bilinear) -> Tensor:
    """Resize as in `letterbox`, but put the bars on the left and on top (lerobot's SmolVLA)."""
    resized = resize_longer_side(images, size, resample)
    return F.pad(resized, (size - resized.shape[-1], 0, size - resized.shape[-2], 0))


def resize_longer_side(images: Tensor, size: int, resample: Resample) -> Tensor:
    """Resize the longer side to `size` with the aspect ratio kept."""
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    ratio = max(height, width) / size
    return resample(images, (max(1, int(height / ratio)), max(1, int(width / ratio))))


RESIZE_METHODS = {"letterbox": letterbox, "letterbox-top-left": letterbox_top_left, "stretch": stretch}
INTERPOLATIONS = ("bilinear", "bicubic")


def resize_images(images: Tensor, size: int, method: str, interpolation: str) -> Tensor:
    """Resize images (B, C, H, W) in [0, 1] to (B, C, size, size) with a method of RESIZE_METHODS.

    "bilinear" interpolation is that of the method: with antialiasing in "stretch", without it in the letterboxes.
    """
    resize = RESIZE_METHODS[method]
    return resize(images, size, pil_bicubic) if interpolation == "bicubic" else resize(images, size)


def is_float_on_device(image: Any) -> bool:
    """Return whether an image is a float tensor on an accelerator, whose range `to_unit_batch` does not check."""
    return isinstance(image, Tensor) and image.is_floating_point() and image.device.type != "cpu"


def to_unit_batch(name: str, image: Any) -> Tensor:
    """Convert an image or a batch of images, in any of the accepted forms, to (B, 3, H, W) float in [0, 1]."""
    tensor = image if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    tensor = tensor[None] if tensor.dim() == 3 else tensor
    if tensor.dim() != 4 or 3 not in (tensor.shape[1], tensor.shape[-1]):
        raise UserError(f"camera {name!r}: an image must be (H, W, 3) or (3, H, W), got {tuple(tensor.shape)}")
    if tensor.shape[1] != 3:
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if not tensor.is_floating_point():
        raise UserError(f"camera {name!r}: an image must be uint8 or float in [0, 1], got {tensor.dtype}")
    if tensor.device.type == "cpu":  # elsewhere it would wait for the device, in every training step too
        check_image_range({name: tensor})
    return tensor.float()
