"""Teacher features on the student's grid: patch centers coincide, and a position code is added.

- The teacher sees a camera's whole picture; the student sees a window of it, with bars where it was letterboxed.
- Where the picture was cropped or rotated before the student saw it, features of the original are sampled at the
  places that the student's patches came from. So features can be cached and pictures augmented at the same time.
- Resampling is linear, so the position code (VGGT's own, weighted by 0.1 as in the reference) is resampled once per
  shape instead of being added to every feature map. It tells the place in the picture that the student was shown.
- A patch of the student that shows nothing of the picture has no target: zeros, which the alignment head passes over.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rocket_hf.errors import UserError

from .teacher import Features, Grid

Window = tuple[float, float, float, float]  # top, left, bottom, right of what is seen, in [0, 1] of the picture

WHOLE: Window = (0.0, 0.0, 1.0, 1.0)
CODE_WEIGHT = 0.1
CODE_BASE = 100  # the longest period of the code's sines, in units of the image's diagonal


class Registration:
    """Brings a teacher's features of each camera to the student's grid. `windows` are those of the cameras.

    `reference_compat` resamples as the public ROCKET code does, corner on corner, which moves patches by up to a
    quarter of the student's; only to compare with it, on pictures that are shown whole.
    """

    def __init__(self, target_grid: Grid, windows: Sequence[Window], reference_compat: bool = False):
        if reference_compat and set(windows) != {WHOLE}:
            raise UserError("reference_compat knows whole pictures only: use square cameras, or leave it out")
        self.target_grid, self.windows, self.reference_compat = target_grid, list(windows), reference_compat

    def __call__(
        self, features: Features, warp: Tensor | None = None, projections: dict[int, Tensor] | None = None
    ) -> dict[int, Tensor]:
        """Targets (B, V, T, C) by layer.

        warp: (B, V, 2, 3), from (x, y) of the picture that the student saw to (x, y) of the teacher's, both in [0, 1].
        projections: (channels, C) by layer, where the features are already projected and the code is not.
        """
        parts: dict[int, list[Tensor]] = {layer: [] for layer in features.maps}
        for cameras, window in self.runs():
            places = None if warp is None else WarpedPlaces(features.grid, self.target_grid, window, warp[:, cameras])
            for layer, maps in features.maps.items():
                projection = projections[layer] if projections else None
                parts[layer].append(self.register(maps[:, cameras], features.grid, window, places, projection))
        return {layer: joined[0] if len(joined) == 1 else torch.cat(joined, dim=1) for layer, joined in parts.items()}

    def runs(self) -> list[tuple[slice, Window]]:
        """Neighboring cameras with the same window, which are registered as one."""
        starts = [i for i, window in enumerate(self.windows) if i == 0 or window != self.windows[i - 1]]
        stops = [*starts[1:], len(self.windows)]
        return [(slice(start, stop), self.windows[start]) for start, stop in zip(starts, stops, strict=True)]

    def register(
        self, maps: Tensor, grid: Grid, window: Window, places: "WarpedPlaces | None", projection: Tensor | None
    ) -> Tensor:
        compat = self.reference_compat
        channels = maps.shape[-1] if projection is None else projection.shape[0]
        code = CODE_WEIGHT * registered_code(
            grid, self.target_grid, window, channels, maps.device, maps.dtype, projection, compat
        )
        if places is not None:
            return places.sample(maps) + code * places.there[..., None].to(code)
        return register_features(maps, grid, self.target_grid, window, code_weight=0, reference_compat=compat) + code


class WarpedPlaces:
    """Where in the teacher's grid the student's patches came from, for pictures that were cropped and rotated.

    The kernel is the one of `resampling_matrix`, around each place: as wide as the student's patches lie apart there.
    """

    def __init__(self, grid: Grid, target_grid: Grid, window: Window, warp: Tensor):
        seen = patch_centers(target_grid, window, warp.device)  # (T, 2)
        places = seen @ warp[..., :2].mT + warp[..., None, :, 2]  # (B, V, T, 2)
        self.there = inside(seen) & inside(places)
        apart = warp[..., :2].norm(dim=-2)  # (B, V, 2), of the axes (x, y) in the teacher's picture
        axes = []
        for axis, side, target, start, stop in zip((1, 0), grid, target_grid, window[:2], window[2:], strict=True):
            widest = max(1.0, side * (stop - start) / target)
            spread = (apart[..., axis, None] * side * (stop - start) / target).clamp(1, widest)
            axes.append(kernel(places[..., axis] * side - 0.5, spread, widest, side))
        (row, down), (column, across) = axes  # each (B, V, T, cells of the kernel along the axis)
        batch, cameras = warp.shape[:2]
        first = torch.arange(batch * cameras, device=warp.device).view(batch, cameras, 1, 1) * (grid[0] * grid[1])
        cells = row[..., :, None] * grid[1] + column[..., None, :]
        self.cells = (first + cells.flatten(-2)).flatten(0, 2)
        weights = (down[..., :, None] * across[..., None, :]).flatten(-2) * self.there[..., None]
        self.weights = weights.flatten(0, 2)

    def sample(self, maps: Tensor) -> Tensor:
        """Maps (B, V, P, C) at those places: (B, V, T, C), zeros where a place lies outside of the picture."""
        weights = self.weights.to(maps.dtype)
        sampled = F.embedding_bag(self.cells, maps.flatten(0, 2), mode="sum", per_sample_weights=weights)
        return sampled.view(*self.there.shape, -1)


def kernel(places: Tensor, spread: Tensor, widest: float, side: int) -> tuple[Tensor, Tensor]:
    """The cells around each place along one axis, and their weights in a triangle of half width `spread`."""
    cells = (places - spread).ceil()[..., None] + torch.arange(math.ceil(2 * widest), device=places.device)
    weights = (1 - (cells - places[..., None]).abs() / spread[..., None]).clamp_min(0)
    weights = weights * ((cells >= 0) & (cells < side))
    return cells.clamp(0, side - 1).long(), weights / weights.sum(-1, keepdim=True).clamp_min(1e-6)


def register_features(
    features: Tensor,
    grid: Grid,
    target_grid: Grid,
    window: Window = WHOLE,
    code_weight: float = CODE_WEIGHT,
    reference_compat: bool = False,
) -> Tensor:
    """Features (..., rows x columns, C) of one grid to (..., rows x columns, C) of another over a window."""
    *leading, _, channels = features.shape
    if grid == target_grid and window == WHOLE and not code_weight:
        return features
    vertical, horizontal = matrices(grid, target_grid, window, features.device, features.dtype, reference_compat)
    maps = features.reshape(-1, grid[0], grid[1] * channels)
    maps = (vertical @ maps).reshape(-1, grid[1], channels)  # (maps x target rows, columns, C)
    maps = (horizontal @ maps).reshape(*leading, target_grid[0] * target_grid[1], channels)
    if not code_weight:
        return maps
    code = registered_code(grid, target_grid, window, channels, features.device, features.dtype, None, reference_compat)
    return maps + code_weight * code


def inside(places: Tensor) -> Tensor:
    return ((places >= 0) & (places <= 1)).all(dim=-1)


@lru_cache(maxsize=64)
def patch_centers(grid: Grid, window: Window, device: torch.device) -> Tensor:
    """(x, y) of each patch of the student in the picture it was shown, (T, 2)."""
    y, x = (
        start + (torch.arange(side) + 0.5) / side * (stop - start)
        for side, start, stop in zip(grid, window[:2], window[2:], strict=True)
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1).to(device)


def matrices(
    grid: Grid, target_grid: Grid, window: Window, device: torch.device, dtype: torch.dtype, corners: bool
) -> list[Tensor]:
    """The vertical and the horizontal resampling matrix."""
    axes = zip(grid, target_grid, window[:2], window[2:], strict=True)
    return [resampling_matrix(*axis, device, dtype, corners) for axis in axes]


@lru_cache(maxsize=64)
def resampling_matrix(
    source: int, target: int, start: float, stop: float, device: torch.device, dtype: torch.dtype, corners: bool
) -> Tensor:
    """(target, source): linear interpolation between cell centers, with a wider kernel where it shrinks.

    Rows whose center lies outside of the source are zero. `corners`: the outermost centers on each other instead.
    """
    cells = torch.arange(source, dtype=torch.float64)
    centers = start + (torch.arange(target, dtype=torch.float64) + 0.5) / target * (stop - start)
    spread = max(1.0, source * (stop - start) / target)
    places = centers * source - 0.5
    if corners:
        places, spread = torch.linspace(0, source - 1, target, dtype=torch.float64), 1.0
        places = places if target > 1 else torch.zeros(1, dtype=torch.float64)
    weights = (1 - (places[:, None] - cells).abs() / spread).clamp_min(0)
    nearest = F.one_hot(places.round().clamp(0, source - 1).long(), source).double()
    weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, nearest)
    weights = weights / weights.sum(1, keepdim=True)
    there = (centers >= 0) & (centers <= 1)
    return (weights * there[:, None]).to(device, dtype)


@lru_cache(maxsize=64)
def registered_code(
    grid: Grid,
    target_grid: Grid,
    window: Window,
    channels: int,
    device: torch.device,
    dtype: torch.dtype,
    projection: Tensor | None,
    reference_compat: bool,
) -> Tensor:
    """The position code of the source grid, resampled and, if the features are, projected: (T, channels)."""
    vertical, horizontal = matrices(grid, target_grid, window, device, torch.float32, reference_compat)
    code = position_code(grid, channels).to(device).unflatten(0, grid)
    code = torch.einsum("yh,xw,hwc->yxc", vertical, horizontal, code).flatten(0, 1)
    return (code if projection is None else code @ projection.to(code)).to(dtype)


def position_code(grid: Grid, channels: int) -> Tensor:
    """2D sinusoids (rows x columns, channels): half of the channels for x, half for y, computed in float64.

    The coordinates span the image's diagonal, as in VGGT's own code, so that the aspect ratio is seen."""
    if channels % 4:
        raise UserError(f"the position code needs a multiple of 4 channels, the teacher has {channels}")
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
