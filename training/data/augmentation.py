"""Crop, rotation and color of pictures, drawn on the CPU and done on the device for a batch at once.

What is drawn of a picture is one row of numbers: the side of the crop window as a part of the picture's, the window's
left and top, the angle in radians, and what brightness, contrast, saturation and hue change. A row of zeros, but for a
side of 1, gives the picture back exactly.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..recipe import AugmentationConfig

DRAWN = ("side", "left", "top", "angle", "brightness", "contrast", "saturation", "hue")
GRAY = (0.2989, 0.587, 0.114)  # the weights of red, green and blue, ITU-R 601


def changes_nothing(config: AugmentationConfig) -> bool:
    amounts = (config.rotation, config.brightness, config.contrast, config.saturation, config.hue)
    return config.crop_area == 1 and not any(amounts)


def draw_augmentation(config: AugmentationConfig, camera: str, generator: Generator) -> Tensor:
    """One row, (len(DRAWN),). It takes as many numbers from the generator whatever the configuration is."""
    area, left, top, *signs = torch.rand(len(DRAWN), generator=generator).tolist()
    angle, brightness, contrast, saturation, hue = (2 * sign - 1 for sign in signs)
    side = math.sqrt(1 - area * (1 - config.crop_area))
    geometry = [side, left * (1 - side), top * (1 - side), angle * math.radians(config.rotation)]
    if camera in config.color_only:
        geometry = [1.0, 0.0, 0.0, 0.0]
    color = [
        brightness * config.brightness,
        contrast * config.contrast,
        saturation * config.saturation,
        hue * config.hue,
    ]
    return torch.tensor(geometry + color)


def augment(pictures: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, H, W) in [0, 1] and one row each, to the augmented ones and their warps, (B, 2, 3).

    A warp takes a place in the augmented picture, (x, y, 1) with x to the right and y down, 0..1 from edge to edge, to
    the place in the original that is seen there. What lies outside of the original is black.
    """
    some = some_change(drawn)
    drawn = drawn.to(pictures.device, pictures.dtype, non_blocking=True)
    side, left, top, angle, brightness, contrast, saturation, hue = drawn.unbind(dim=1)
    warp = crop_and_rotation(side, left, top, angle, pictures.shape[-1] / pictures.shape[-2])
    if some["side"] or some["angle"]:
        moved = (side != 1) | (angle != 0)
        pictures = torch.where(column(moved), resample(pictures, warp), pictures)
    if some["brightness"]:
        pictures = (pictures + column(brightness)).clamp(0, 1)
    if some["contrast"]:
        pictures = blend(pictures, gray(pictures).mean(dim=(-1, -2), keepdim=True), 1 + contrast)
    if some["saturation"]:
        pictures = blend(pictures, gray(pictures), 1 + saturation)
    if some["hue"]:
        pictures = torch.where(column(hue) != 0, turn_hue(pictures, hue), pictures)
    return pictures, warp


def some_change(drawn: Tensor) -> dict[str, bool]:
    """Of each number, whether it changes any picture of the batch. Rows on a GPU are not waited for: they may all."""
    if drawn.is_cuda:
        return dict.fromkeys(DRAWN, True)
    neutral = torch.tensor([1.0 if name == "side" else 0.0 for name in DRAWN])
    return dict(zip(DRAWN, (drawn != neutral).any(dim=0).tolist(), strict=True))


def crop_and_rotation(side: Tensor, left: Tensor, top: Tensor, angle: Tensor, aspect: float) -> Tensor:
    """The window, turned around its center. `aspect` is width / height: the turn is one of pixels, not of fractions."""
    cosine, sine = side * angle.cos(), side * angle.sin()
    x_row = torch.stack([cosine, -sine / aspect], dim=-1)
    y_row = torch.stack([sine * aspect, cosine], dim=-1)
    linear = torch.stack([x_row, y_row], dim=1)  # (B, 2, 2)
    center = torch.stack([left, top], dim=-1) + side[:, None] / 2
    offset = center - linear.sum(dim=-1) / 2  # the middle (1/2, 1/2) of the result sees the window's center
    return torch.cat([linear, offset[..., None]], dim=-1)


def resample(pictures: Tensor, warp: Tensor) -> Tensor:
    """Bilinear, black outside."""
    linear, offset = warp[..., :2], warp[..., 2]
    # grid_sample counts from -1 to 1: v = 2 u - 1
    theta = torch.cat([linear, (2 * offset + linear.sum(dim=-1) - 1)[..., None]], dim=-1)
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def column(values: Tensor) -> Tensor:
    """(B,) beside pictures."""
    return values[:, None, None, None]


def gray(pictures: Tensor) -> Tensor:
    red, green, blue = (weight * channel for weight, channel in zip(GRAY, pictures.unbind(dim=1), strict=True))
    return (red + green + blue)[:, None]


def blend(pictures: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """The picture at factor 1, the other at 0, and beyond the picture above 1."""
    return (column(factor) * pictures + (1 - column(factor)) * other).clamp(0, 1)


def turn_hue(pictures: Tensor, turns: Tensor) -> Tensor:
    """Around the color circle, with value and chroma kept (the hexagon of HSV)."""
    red, green, blue = pictures.unbind(dim=1)
    value, chroma = pictures.amax(dim=1), pictures.amax(dim=1) - pictures.amin(dim=1)  # (B, H, W)
    divisor = torch.where(chroma == 0, 1, chroma)
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sector = sector + 6 * turns[:, None, None]
    channels = [(start + sector) % 6 for start in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in channels], dim=1)
