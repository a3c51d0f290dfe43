"""Image augmentation: random crop, rotation and color changes.

Parameters are drawn on the CPU, in the loader's workers, and applied on the device to a whole batch. The parameters of
an image are one row of numbers: the side of the crop window as a fraction of the image's side, the window's left and
top, the rotation angle in radians, and the changes of brightness, contrast, saturation and hue. A row with side 1 and
zeros elsewhere returns the image bit for bit.
"""

import fnmatch
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from rocket_hf.errors import UserError

from ..recipe import AugmentationConfig

PARAMETERS = ("side", "left", "top", "angle", "brightness", "contrast", "saturation", "hue")
GEOMETRY = 4  # number of parameters of crop and rotation, which come before those of colors
PATTERN_CHARACTERS = set("*?[")  # of patterns of cameras' names
GRAY_WEIGHTS = (0.2989, 0.587, 0.114)  # of red, green and blue (ITU-R 601)


def is_identity(config: AugmentationConfig) -> bool:
    """Return whether the configuration leaves all images unchanged."""
    amounts = (config.rotation, config.brightness, config.contrast, config.saturation, config.hue)
    return config.crop_area == 1 and not any(amounts)


def is_color_only(config: AugmentationConfig, camera: str) -> bool:
    """Return whether a camera is listed, or matches a pattern such as "*wrist*" in any case."""
    return any(fnmatch.fnmatchcase(camera.lower(), pattern.lower()) for pattern in config.color_only)


def check_augmented_cameras(config: AugmentationConfig, cameras: Sequence[str]) -> None:
    """Raise if the configuration names cameras that the policy does not have, or contradicts itself.

    A pattern may match no camera, so that one recipe fits several robots.
    """
    named = [("color_only", camera) for camera in config.color_only if not PATTERN_CHARACTERS & set(camera)]
    named += [("same_geometry", camera) for pair in config.same_geometry.items() for camera in pair]
    for key, camera in named:
        if camera not in cameras:
            raise UserError(
                f"data.augmentation.{key}: the policy has no camera {camera!r}, its cameras are {', '.join(cameras)}"
            )
    for camera, reference in config.same_geometry.items():
        if reference in config.same_geometry:
            raise UserError(
                f"data.augmentation.same_geometry: {reference!r} of {camera!r} follows another camera itself: name "
                f"{config.same_geometry[reference]!r} for both"
            )
        if is_color_only(config, camera):
            raise UserError(
                f"data.augmentation: {camera!r} is both in color_only and in same_geometry: remove it from one of them"
            )


def draw_augmentations(config: AugmentationConfig, cameras: Sequence[str], generator: Generator) -> Tensor:
    """Draw the parameters of one image of each camera, (V, len(PARAMETERS)).

    Images of `same_geometry` get the crop and rotation of their reference and no color changes. Their own draws are
    discarded, so that those of the other cameras stay the same.
    """
    rows = {camera: draw_augmentation(config, camera, generator) for camera in cameras}
    for camera, reference in config.same_geometry.items():
        rows[camera] = torch.cat([rows[reference][:GEOMETRY], torch.zeros(len(PARAMETERS) - GEOMETRY)])
    return torch.stack([rows[camera] for camera in cameras])


def draw_augmentation(config: AugmentationConfig, camera: str, generator: Generator) -> Tensor:
    """Draw the parameters of one image, (len(PARAMETERS),).

    The number of values taken from the generator is the same for all configurations.
    """
    area, left, top, *signs = torch.rand(len(PARAMETERS), generator=generator).tolist()
    angle, brightness, contrast, saturation, hue = (2 * sign - 1 for sign in signs)
    side = math.sqrt(config.crop_area if config.crop_fixed else 1 - area * (1 - config.crop_area))
    geometry = [side, left * (1 - side), top * (1 - side), angle * math.radians(config.rotation)]
    if is_color_only(config, camera):
        geometry = [1.0, 0.0, 0.0, 0.0]
    color = [
        brightness * config.brightness,
        contrast * config.contrast,
        saturation * config.saturation,
        hue * config.hue,
    ]
    return torch.tensor(geometry + color)


def augment(images: Tensor, parameters: Tensor, aspect: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Augment images (B, 3, H, W) in [0, 1] by one row of parameters each; return them and their warps, (B, 2, 3).

    A warp maps a point of the augmented image, (x, y, 1) with x to the right and y down, 0..1 from edge to edge, to the
    point of the original that is shown there. Points outside of the original are black. `aspect` is width / height of
    the camera's images if these are resized to another ratio.
    """
    changes = find_changes(parameters)
    parameters = parameters.to(images.device, images.dtype, non_blocking=True)
    side, left, top, angle, brightness, contrast, saturation, hue = parameters.unbind(dim=1)
    ratio = images.shape[-1] / images.shape[-2] if aspect is None else aspect.to(images.device, non_blocking=True)
    warp = crop_and_rotation(side, left, top, angle, ratio)
    if changes["side"] or changes["angle"]:
        moved = (side != 1) | (angle != 0)
        images = torch.where(per_image(moved), resample(images, warp), images)
    if changes["brightness"]:
        images = (images + per_image(brightness)).clamp(0, 1)
    if changes["contrast"]:
        images = blend(images, gray(images).mean(dim=(-1, -2), keepdim=True), 1 + contrast)
    if changes["saturation"]:
        images = blend(images, gray(images), 1 + saturation)
    if changes["hue"]:
        images = torch.where(per_image(hue) != 0, shift_hue(images, hue), images)
    return images, warp


def find_changes(parameters: Tensor) -> dict[str, bool]:
    """Return for each parameter whether it changes any image of the batch.

    Parameters on a GPU all count as changing: comparing them would wait for the device.
    """
    if parameters.is_cuda:
        return dict.fromkeys(PARAMETERS, True)
    neutral = torch.tensor([1.0 if name == "side" else 0.0 for name in PARAMETERS])
    return dict(zip(PARAMETERS, (parameters != neutral).any(dim=0).tolist(), strict=True))


def crop_and_rotation(side: Tensor, left: Tensor, top: Tensor, angle: Tensor, aspect: float | Tensor) -> Tensor:
    """Return the warps (B, 2, 3) of crop windows that are rotated around their centers.

    `aspect` is width / height of the image: the rotation is one of pixels, whereas points are fractions of the sides.
    """
    cosine, sine = side * angle.cos(), side * angle.sin()
    x_row = torch.stack([cosine, -sine / aspect], dim=-1)
    y_row = torch.stack([sine * aspect, cosine], dim=-1)
    linear = torch.stack([x_row, y_row], dim=1)  # (B, 2, 2)
    center = torch.stack([left, top], dim=-1) + side[:, None] / 2
    offset = center - linear.sum(dim=-1) / 2  # the center (1/2, 1/2) of the result shows the window's center
    return torch.cat([linear, offset[..., None]], dim=-1)


def resample(images: Tensor, warp: Tensor) -> Tensor:
    """Sample images at the warped points: bilinear, black outside."""
    linear, offset = warp[..., :2], warp[..., 2]
    # grid_sample expects coordinates from -1 to 1: v = 2 u - 1
    theta = torch.cat([linear, (2 * offset + linear.sum(dim=-1) - 1)[..., None]], dim=-1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def per_image(values: Tensor) -> Tensor:
    """Reshape (B,) values so that they broadcast over images (B, 3, H, W)."""
    return values[:, None, None, None]


def gray(images: Tensor) -> Tensor:
    red, green, blue = (weight * channel for weight, channel in zip(GRAY_WEIGHTS, images.unbind(dim=1), strict=True))
    return (red + green + blue)[:, None]


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Interpolate between `other` (factor 0) and the images (factor 1); factors above 1 extrapolate."""
    return (per_image(factor) * images + (1 - per_image(factor)) * other).clamp(0, 1)


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate hues by `turns` (B,) of the color circle; value and chroma are kept (the hexagon of HSV)."""
    red, green, blue = images.unbind(dim=1)
    value, chroma = images.amax(dim=1), images.amax(dim=1) - images.amin(dim=1)  # (B, H, W)
    divisor = torch.where(chroma == 0, 1, chroma)
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sector = sector + 6 * turns[:, None, None]
    channels = [(start + sector) % 6 for start in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in channels], dim=1)
