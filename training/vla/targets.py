"""Alignment targets on the student's grid: the teacher's features, computed in each step or read from a cache; or, as a
control, positions alone.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.frozen import FrozenTeacher
from rocket_hf.teachers.registration import WHOLE_IMAGE, Registration, Window
from rocket_hf.teachers.scene import scene_images
from rocket_hf.teachers.teacher import Features, Grid

from ..data.batches import LoaderBatch
from .layers_by_depth import OTHER_CHOICE

Targets = dict[int, Tensor]  # by teacher layer, (B, V, T, C)


class TargetSource(Protocol):
    width: int  # C

    def __call__(self, batch: LoaderBatch, images: Sequence[Tensor], warp: Tensor | None) -> Targets:
        """Return the targets of a batch.

        `images` are the augmented images of each camera, (B, 3, H, W) in [0, 1]; `warp` (B, V, 2, 3) maps places of
        augmented images to places of the originals. Live targets use the former, cached ones the latter.
        """


class LiveTargets:
    """The teacher's features of the augmented images, including their color augmentation."""

    def __init__(self, teacher: FrozenTeacher, layers: Sequence[int], registration: Registration):
        for layer in layers:
            try:
                teacher.card.resolve_layer(layer)
            except UserError as error:
                raise UserError(f"alignment.teacher_layers: {error}; {OTHER_CHOICE}") from None
        self.teacher, self.layers, self.registration = teacher, list(layers), registration
        self.width = teacher.card.width

    def __call__(self, batch: LoaderBatch, images: Sequence[Tensor], warp: Tensor | None) -> Targets:
        return self.registration(self.scene_features(images, batch["camera_mask"]))

    def scene_features(self, images: Sequence[Tensor], camera_mask: Tensor | None) -> Features:
        return self.teacher.features(scene_images(images, self.teacher), self.layers, camera_mask)


class CachedTargets:
    """Cached features of the original images, sampled at the places that the augmented images contain.

    Crops and rotations are followed; color augmentation does not affect them.
    """

    def __init__(self, cache: FeatureCache, registration: Registration, dtype: torch.dtype):
        self.cache, self.registration, self.dtype = cache, registration, dtype
        self.width = cache.width
        self.projections: dict[torch.device, dict[int, Tensor]] = {}

    def __call__(self, batch: LoaderBatch, images: Sequence[Tensor], warp: Tensor | None) -> Targets:
        device = images[0].device
        rows = {name: stored.to(device, non_blocking=True) for name, stored in batch["features"].items()}
        return self.registration(self.cache.decode(rows, self.dtype), warp, self.projections_on(device))

    def projections_on(self, device: torch.device) -> dict[int, Tensor] | None:
        """Return the cache's projection of each layer, moved to the device once.

        The registration caches one projected position code per projection tensor, so these must stay the same tensors.
        """
        if device not in self.projections:
            stored = {layer: self.cache.projection(layer) for layer in self.cache.layers}
            self.projections[device] = {layer: each.to(device) for layer, each in stored.items() if each is not None}
        return self.projections[device] or None


class PositionTargets:
    """The position code alone that registration adds to features: targets that know places but nothing of the image."""

    def __init__(self, width: int, grid: Grid, layers: Sequence[int], registration: Registration):
        """`width` and `grid` are those of the teacher whose features these targets replace."""
        self.width, self.grid, self.layers, self.registration = width, grid, list(layers), registration

    def __call__(self, batch: LoaderBatch, images: Sequence[Tensor], warp: Tensor | None) -> Targets:
        count, device = len(images[0]), images[0].device
        nothing = torch.zeros(count, len(images), self.grid[0] * self.grid[1], self.width, device=device)
        return self.registration(Features(dict.fromkeys(self.layers, nothing), self.grid), warp)


def image_window(resize: str, size: tuple[int, int], side: int) -> Window:
    """Return the region of a camera image (height, width) that the policy's square image covers, including its bars.

    `resize` is one of the processor's resize modes.
    """
    if resize == "stretch":
        return WHOLE_IMAGE
    height, width = size
    ratio = max(height, width) / side
    rows, columns = int(height / ratio), int(width / ratio)
    top, left = side - rows, side - columns
    if resize == "letterbox":
        top, left = top // 2, left // 2
    return -top / rows, -left / columns, (side - top) / rows, (side - left) / columns


def image_windows(processor: RocketProcessor, sizes: Sequence[tuple[int, int]]) -> list[Window]:
    return [image_window(processor.resize, size, processor.image_size) for size in sizes]
