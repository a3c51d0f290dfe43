"""Teacher features on the student's grid: patch centres coincide, and a position code is added.

Resampling is linear, so the position code (VGGT's own, weighted by 0.1 as in the reference) is resampled once per
shape instead of being added to every feature map, and it is separable, so it is two small matrix products.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]  # rows, columns

CODE_WEIGHT = 0.1
CODE_BASE = 100  # the longest period of the code's sines, in units of the image's diagonal


def register_features(features: Tensor, grid: Grid, target_grid: Grid, code_weight: float = CODE_WEIGHT) -> Tensor:
    """Features (..., rows x columns, C) of one grid to (..., rows x columns, C) of another over the same image."""
    *leading, _, channels = features.shape
    vertical, horizontal = (
        resampling_matrix(source, target, features.device, features.dtype)
        for source, target in zip(grid, target_grid, strict=True)
    )
    maps = features.reshape(-1, grid[0], grid[1] * channels)
    maps = (vertical @ maps).reshape(-1, grid[1], channels)  # (maps x target rows, columns, C)
    maps = (horizontal @ maps).reshape(*leading, target_grid[0] * target_grid[1], channels)
    if not code_weight:
        return maps
    return maps + code_weight * registered_code(grid, target_grid, channels, features.device, features.dtype)


@lru_cache(maxsize=64)
def resampling_matrix(source: int, target: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(target, source): linear interpolation between cell centres, with a wider kernel where it shrinks."""
    identity = torch.eye(source)[None, None]
    matrix = F.interpolate(identity, size=(target, source), mode="bilinear", antialias=True, align_corners=False)
    return matrix[0, 0].to(device, dtype)


@lru_cache(maxsize=16)
def registered_code(grid: Grid, target_grid: Grid, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The position code of the source grid, resampled: (target rows x columns, channels)."""
    vertical, horizontal = (
        resampling_matrix(a, b, device, torch.float32) for a, b in zip(grid, target_grid, strict=True)
    )
    code = position_code(grid, channels).to(device).unflatten(0, grid)
    return torch.einsum("yh,xw,hwc->yxc", vertical, horizontal, code).flatten(0, 1).to(dtype)


def position_code(grid: Grid, channels: int) -> Tensor:
    """2D sinusoids (rows x columns, channels): half of the channels for x, half for y, computed in float64.

    The coordinates span the image's diagonal, as in VGGT's own code, so that the aspect ratio is seen."""
    rows, columns = grid
    aspect = columns / rows
    diagonal = (aspect**2 + 1) ** 0.5
    x = torch.linspace(-1, 1, columns, dtype=torch.float64) * aspect / diagonal * (columns - 1) / columns
    y = torch.linspace(-1, 1, rows, dtype=torch.float64) / diagonal * (rows - 1) / rows
    frequencies = CODE_BASE ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    x_code, y_code = (
        torch.cat([angle.sin(), angle.cos()], -1) for angle in (x[:, None] * frequencies, y[:, None] * frequencies)
    )
    x_code, y_code = x_code.expand(rows, -1, -1), y_code[:, None].expand(-1, columns, -1)
    return torch.cat([x_code, y_code], dim=-1).flatten(0, 1).float()
