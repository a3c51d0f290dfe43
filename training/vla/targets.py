"""The teacher's features on the student's grid, computed live or read from a cache."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.frozen import FrozenTeacher
from rocket_hf.teachers.registration import WHOLE, Registration, Window
from rocket_hf.teachers.scene import scene_images
from rocket_hf.teachers.teacher import Features

from ..data.batches import LoaderBatch

Targets = dict[int, Tensor]  # by teacher layer, (B, V, T, C)


class TargetSource(Protocol):
    width: int  # C

    def __call__(self, batch: LoaderBatch, pictures: Sequence[Tensor], warp: Tensor | None) -> Targets:
        """From the augmented pictures, by camera (B, 3, H, W) in [0, 1], or from what is known of the original ones
        and `warp` (B, V, 2, 3), which tells where each place of an augmented picture was in its original."""


class LiveTargets:
    """Of the augmented pictures, colors too."""

    def __init__(self, teacher: FrozenTeacher, layers: Sequence[int], registration: Registration):
        for layer in layers:
            teacher.resolve(layer)
        self.teacher, self.layers, self.registration = teacher, list(layers), registration
        self.width = teacher.card.width

    def __call__(self, batch: LoaderBatch, pictures: Sequence[Tensor], warp: Tensor | None) -> Targets:
        return self.registration(self.scene_features(pictures, batch["camera_mask"]))

    def scene_features(self, pictures: Sequence[Tensor], camera_mask: Tensor | None) -> Features:
        return self.teacher.features(scene_images(pictures, self.teacher), self.layers, camera_mask)


class CachedTargets:
    """Of the original pictures, sampled at the places that the augmented ones show; colors do not touch them."""

    def __init__(self, cache: FeatureCache, registration: Registration, dtype: torch.dtype):
        self.cache, self.registration, self.dtype = cache, registration, dtype
        self.width = cache.width
        self.projections: dict[torch.device, dict[int, Tensor]] = {}

    def __call__(self, batch: LoaderBatch, pictures: Sequence[Tensor], warp: Tensor | None) -> Targets:
        device = pictures[0].device
        rows = {name: stored.to(device, non_blocking=True) for name, stored in batch["features"].items()}
        return self.registration(self.cache.decode(rows, self.dtype), warp, self.projections_on(device))

    def projections_on(self, device: torch.device) -> dict[int, Tensor] | None:
        """By layer, moved there once: the registration keeps one projected position code for each such tensor."""
        if device not in self.projections:
            stored = {layer: self.cache.projection(layer) for layer in self.cache.layers}
            self.projections[device] = {layer: each.to(device) for layer, each in stored.items() if each is not None}
        return self.projections[device] or None


def picture_window(resize: str, size: tuple[int, int], side: int) -> Window:
    """What of a camera's picture (height, width) a policy's square image shows, bars included: see the processor."""
    if resize == "stretch":
        return WHOLE
    height, width = size
    ratio = max(height, width) / side
    rows, columns = int(height / ratio), int(width / ratio)
    above, left = side - rows, side - columns
    if resize == "letterbox":
        above, left = above // 2, left // 2
    return -above / rows, -left / columns, (side - above) / rows, (side - left) / columns


def picture_windows(processor: RocketProcessor, sizes: Sequence[tuple[int, int]]) -> list[Window]:
    return [picture_window(processor.resize, size, processor.image_size) for size in sizes]
