"""Registration of teacher features on the student's grid: patch centers coincide, and a position code is added.

- The teacher receives a camera's whole image; the student receives a window of it, with bars where it was letterboxed.
- If the image was cropped or rotated for the student, features of the original image are sampled at the original
  positions of the student's patches. So features can be cached and images augmented at the same time.
- Resampling is linear, so the position code (VGGT's own, weighted by 0.1 as in the reference) is resampled once per
  shape instead of being added to every feature map. It encodes the position in the image that the student received.
- A student patch that shows no part of the image has no target: it gets zeros, which the alignment head ignores.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rocket_hf.errors import UserError

from .teacher import Features, Grid

Window = tuple[float, float, float, float]  # top, left, bottom, right of the visible part, as fractions of the image

WHOLE_IMAGE: Window = (0.0, 0.0, 1.0, 1.0)
CODE_WEIGHT = 0.1
CODE_BASE = 100  # longest period of the code's sines, in units of the image's diagonal


class Registration:
    """Resampling of a teacher's features to the student's grid. `windows` has one window for each camera.

    `reference_compat` resamples as the public ROCKET code does, which aligns corners instead of centers and so moves
    patches by up to a quarter of a student patch. Use it only for comparisons, on images without letterbox bars.
    `normalize_targets` is the share that `subtract_image_mean` subtracts.
    """

    def __init__(
        self,
        target_grid: Grid,
        windows: Sequence[Window],
        reference_compat: bool = False,
        normalize_targets: float = 0.0,
    ):
        if reference_compat and set(windows) != {WHOLE_IMAGE}:
            raise UserError("reference_compat does not support letterboxed images: use square cameras, or remove it")
        self.target_grid, self.windows, self.reference_compat = target_grid, list(windows), reference_compat
        self.normalize_targets = normalize_targets

    def __call__(
        self, features: Features, warp: Tensor | None = None, projections: dict[int, Tensor] | None = None
    ) -> dict[int, Tensor]:
        """Return the alignment targets (B, V, T, C) of each layer.

        warp: (B, V, 2, 3), maps (x, y) in the student's image to (x, y) in the teacher's image, both in [0, 1].
        projections: (channels, C) for each layer, if the features are already projected and the code is not.
        """
        parts: dict[int, list[Tensor]] = {layer: [] for layer in features.maps}
        for cameras, window in self.camera_groups():
            sampler = None if warp is None else WarpedSampler(features.grid, self.target_grid, window, warp[:, cameras])
            for layer, maps in features.maps.items():
                projection = projections[layer] if projections else None
                parts[layer].append(self.register(maps[:, cameras], features.grid, window, sampler, projection))
        joined = {layer: maps[0] if len(maps) == 1 else torch.cat(maps, dim=1) for layer, maps in parts.items()}
        return {layer: subtract_image_mean(maps, self.normalize_targets) for layer, maps in joined.items()}

    def camera_groups(self) -> list[tuple[slice, Window]]:
        """Return slices of adjacent cameras with the same window, which are registered together."""
        starts = [i for i, window in enumerate(self.windows) if i == 0 or window != self.windows[i - 1]]
        stops = [*starts[1:], len(self.windows)]
        return [(slice(start, stop), self.windows[start]) for start, stop in zip(starts, stops, strict=True)]

    def register(
        self, maps: Tensor, grid: Grid, window: Window, sampler: "WarpedSampler | None", projection: Tensor | None
    ) -> Tensor:
        compat = self.reference_compat
        channels = maps.shape[-1] if projection is None else projection.shape[0]
        code = CODE_WEIGHT * register_position_code(
            grid, self.target_grid, window, channels, maps.device, maps.dtype, projection, compat
        )
        if sampler is not None:
            return sampler.sample(maps) + code * sampler.is_visible[..., None].to(code)
        return register_features(maps, grid, self.target_grid, window, code_weight=0, reference_compat=compat) + code


class WarpedSampler:
    """Sampler of teacher features at the original positions of the student's patches, for cropped and rotated images.

    It uses the kernel of `resampling_matrix` around each position, as wide as the distance between student patches.
    """

    def __init__(self, grid: Grid, target_grid: Grid, window: Window, warp: Tensor):
        centers = patch_centers(target_grid, window, warp.device)  # (T, 2)
        positions = centers @ warp[..., :2].mT + warp[..., None, :, 2]  # (B, V, T, 2)
        self.is_visible = is_inside(centers) & is_inside(positions)
        scales = warp[..., :2].norm(dim=-2)  # (B, V, 2), of the axes (x, y) in the teacher's image
        axes = []
        for axis, side, target, start, stop in zip((1, 0), grid, target_grid, window[:2], window[2:], strict=True):
            widest = max(1.0, side * (stop - start) / target)
            spread = (scales[..., axis, None] * side * (stop - start) / target).clamp(1, widest)
            axes.append(triangle_kernel(positions[..., axis] * side - 0.5, spread, widest, side))
        (rows, row_weights), (columns, column_weights) = axes  # each (B, V, T, cells of the kernel along the axis)
        batch, cameras = warp.shape[:2]
        first = torch.arange(batch * cameras, device=warp.device).view(batch, cameras, 1, 1) * (grid[0] * grid[1])
        cells = rows[..., :, None] * grid[1] + columns[..., None, :]
        self.cells = (first + cells.flatten(-2)).flatten(0, 2)
        weights = (row_weights[..., :, None] * column_weights[..., None, :]).flatten(-2) * self.is_visible[..., None]
        self.weights = weights.flatten(0, 2)

    def sample(self, maps: Tensor) -> Tensor:
        """Sample maps (B, V, P, C) at the positions of the patches: (B, V, T, C), zeros outside of the image."""
        weights = self.weights.to(maps.dtype)
        sampled = F.embedding_bag(self.cells, maps.flatten(0, 2), mode="sum", per_sample_weights=weights)
        return sampled.view(*self.is_visible.shape, -1)


def triangle_kernel(positions: Tensor, spread: Tensor, widest: float, side: int) -> tuple[Tensor, Tensor]:
    """Return the cells around each position along one axis, and their weights in a triangle of half width `spread`."""
    cells = (positions - spread).ceil()[..., None] + torch.arange(math.ceil(2 * widest), device=positions.device)
    weights = (1 - (cells - positions[..., None]).abs() / spread[..., None]).clamp_min(0)
    weights = weights * ((cells >= 0) & (cells < side))
    return cells.clamp(0, side - 1).long(), weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)


def register_features(
    features: Tensor,
    grid: Grid,
    target_grid: Grid,
    window: Window = WHOLE_IMAGE,
    code_weight: float = CODE_WEIGHT,
    reference_compat: bool = False,
) -> Tensor:
    """Resample features (..., rows x columns, C) from one grid to another grid over a window of the image."""
    *leading, _, channels = features.shape
    if grid == target_grid and window == WHOLE_IMAGE and not code_weight:
        return features
    vertical, horizontal = resampling_matrices(
        grid, target_grid, window, features.device, features.dtype, reference_compat
    )
    maps = features.reshape(-1, grid[0], grid[1] * channels)
    maps = (vertical @ maps).reshape(-1, grid[1], channels)  # (maps x target rows, columns, C)
    maps = (horizontal @ maps).reshape(*leading, target_grid[0] * target_grid[1], channels)
    if not code_weight:
        return maps
    code = register_position_code(
        grid, target_grid, window, channels, features.device, features.dtype, None, reference_compat
    )
    return maps + code_weight * code


def subtract_image_mean(targets: Tensor, share: float) -> Tensor:
    """Subtract a share of the mean target of an image from its targets (B, V, T, C), as iREPA (arXiv 2512.10794) does.

    What all places of an image have in common then counts less in the cosine than their differences. Places without a
    target, zeros, are not part of the mean and stay zeros; each image has a mean of its own, so missing cameras do not
    change others.
    """
    if not share:
        return targets
    has_target = (targets != 0).any(dim=-1, keepdim=True)  # (B, V, T, 1)
    mean = targets.float().sum(dim=-2, keepdim=True) / has_target.sum(dim=-2, keepdim=True).clamp_min(1)
    return torch.where(has_target, targets - share * mean.to(targets), targets)


def is_inside(positions: Tensor) -> Tensor:
    return ((positions >= 0) & (positions <= 1)).all(dim=-1)


@lru_cache(maxsize=64)
def patch_centers(grid: Grid, window: Window, device: torch.device) -> Tensor:
    """Return the center (x, y) of each student patch, relative to the camera's image: (T, 2)."""
    y, x = (
        start + (torch.arange(side) + 0.5) / side * (stop - start)
        for side, start, stop in zip(grid, window[:2], window[2:], strict=True)
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1).to(device)


def resampling_matrices(
    grid: Grid, target_grid: Grid, window: Window, device: torch.device, dtype: torch.dtype, align_corners: bool
) -> list[Tensor]:
    """Return the vertical and the horizontal resampling matrix."""
    axes = zip(grid, target_grid, window[:2], window[2:], strict=True)
    return [resampling_matrix(*axis, device, dtype, align_corners) for axis in axes]


@lru_cache(maxsize=64)
def resampling_matrix(
    source: int, target: int, start: float, stop: float, device: torch.device, dtype: torch.dtype, align_corners: bool
) -> Tensor:
    """Return a matrix (target, source) of linear interpolation between cell centers. Shrinking widens the kernel.

    Rows whose center is outside of the source are zero. `align_corners` maps the outermost centers onto each other.
    """
    cells = torch.arange(source, dtype=torch.float64)
    centers = start + (torch.arange(target, dtype=torch.float64) + 0.5) / target * (stop - start)
    spread = max(1.0, source * (stop - start) / target)
    positions = centers * source - 0.5
    if align_corners:
        positions, spread = torch.linspace(0, source - 1, target, dtype=torch.float64), 1.0
        positions = positions if target > 1 else torch.zeros(1, dtype=torch.float64)
    weights = (1 - (positions[:, None] - cells).abs() / spread).clamp_min(0)
    nearest = F.one_hot(positions.round().clamp(0, source - 1).long(), source).double()
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, nearest)
    weights = weights / weights.sum(1, keepdim=True)
    return (weights * is_inside(centers[:, None])[:, None]).to(device, dtype)


@lru_cache(maxsize=64)
def register_position_code(
    grid: Grid,
    target_grid: Grid,
    window: Window,
    channels: int,
    device: torch.device,
    dtype: torch.dtype,
    projection: Tensor | None,
    reference_compat: bool,
) -> Tensor:
    """Return the position code (T, channels) of the source grid, resampled, and projected if the features are."""
    vertical, horizontal = resampling_matrices(grid, target_grid, window, device, torch.float32, reference_compat)
    code = position_code(grid, channels).to(device).unflatten(0, grid)
    code = torch.einsum("yh,xw,hwc->yxc", vertical, horizontal, code).flatten(0, 1)
    return (code if projection is None else code @ projection.to(code)).to(dtype)


def position_code(grid: Grid, channels: int) -> Tensor:
    """Return 2D sinusoids (rows x columns, channels), computed in float64: half of the channels for x, half for y.

    The coordinates span the image's diagonal, as in VGGT's own code, so that the code depends on the aspect ratio."""
    if channels % 4:
        raise UserError(
            f"the position code needs a multiple of 4 channels, but the teacher has {channels}: use another teacher"
        )
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
