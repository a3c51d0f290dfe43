"""What all teachers share: the size at which they see a camera, the pixels, the scenes, and that nothing is learned.

A teacher that is one says only how it gets from the frames of scenes to its layers.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rocket_hf.errors import UserError
from rocket_hf.modeling.policy_interface import unit_range

from .scene import resized
from .teacher import Features, Resolution, Teacher, TeacherCard

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrozenTeacher(Teacher):
    dropped: Sequence[str] = ()  # tensors of its checkpoint that no feature comes from

    def __init__(self, module: nn.Module, card: TeacherCard, resolution: Resolution = "camera"):
        self.module = module.eval().requires_grad_(False)
        self.card = card
        parameter = next(module.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.mean, self.std = (
            torch.tensor(values, device=self.device)[:, None, None] for values in (card.mean, card.std)
        )
        self.resolution = check_resolution(resolution, card.patch_size)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        patch, longer = self.card.patch_size, max(height, width)
        own = self.card.image_size // patch * patch
        side = own if self.resolution == "teacher" else longer if self.resolution == "camera" else int(self.resolution)
        rows, columns = (round(each * side / longer / patch) for each in (height, width))
        if not rows or not columns:
            raise UserError(
                f"a camera of {width} x {height} pixels is smaller than one patch of {self.card.name}, "
                f"{patch} pixels, at resolution={self.resolution!r}: choose a higher resolution"
            )
        return rows * patch, columns * patch

    @torch.no_grad()
    def features(self, images: Tensor, layers: Sequence[int], camera_mask: Tensor | None = None) -> Features:
        if images.ndim != 5 or images.shape[2] != 3:
            raise UserError(f"a teacher sees pictures (batch, cameras, 3, height, width), got {tuple(images.shape)}")
        numbers = {layer: self.resolve(layer) for layer in layers}
        wanted = sorted(set(numbers.values()))
        kind = "cpu" if self.device.type == "meta" else self.device.type
        with torch.autocast(kind, enabled=False):
            found = self.of_scenes(self.pixels(images), wanted, camera_mask)
        return Features({layer: found[number] for layer, number in numbers.items()}, self.grid(*images.shape[-2:]))

    @abstractmethod
    def scene_features(self, pixels: Tensor, layers: list[int]) -> dict[int, Tensor]:
        """Of normalized frames (B, V, 3, H, W), all present, and numbers 1..depth from shallow to deep."""

    def resolve(self, layer: int) -> int:
        depth = self.card.depth
        number = layer + depth + 1 if layer < 0 else layer
        if not 1 <= number <= depth:
            raise UserError(
                f"{self.card.name} has no layer {layer}: its {depth} blocks are layers 1..{depth}, or -{depth}..-1"
            )
        return number

    def pixels(self, images: Tensor) -> Tensor:
        """At the size that it sees, normalized: (B, V, 3, H, W)."""
        frames = unit_range(images.to(self.device).flatten(0, 1)).float()
        frames = resized(frames, self.input_size(*frames.shape[-2:]))
        return ((frames - self.mean) / self.std).to(self.dtype).unflatten(0, images.shape[:2])

    def of_scenes(self, pixels: Tensor, layers: list[int], camera_mask: Tensor | None) -> dict[int, Tensor]:
        """Samples that have the same cameras go through together, each a scene of those cameras alone."""
        if camera_mask is None or bool(camera_mask.all()):
            return self.scene_features(pixels, layers)
        patches = (pixels.shape[-2] // self.card.patch_size) * (pixels.shape[-1] // self.card.patch_size)
        shape = (*pixels.shape[:2], patches, self.card.width)
        found = {layer: pixels.new_zeros(shape) for layer in layers}
        camera_mask = camera_mask.to(self.device)
        for pattern in camera_mask.unique(dim=0):
            samples = (camera_mask == pattern).all(dim=1).nonzero()  # (samples, 1)
            cameras = pattern.nonzero().flatten()
            if len(cameras):
                scenes = self.scene_features(pixels[samples, cameras], layers)
                for layer, maps in scenes.items():
                    found[layer][samples, cameras] = maps
        return found


def check_resolution(resolution: Resolution, patch_size: int) -> Resolution:
    if resolution in ("teacher", "camera") or (isinstance(resolution, int) and resolution >= patch_size):
        return resolution
    raise UserError(
        f'resolution must be "teacher", "camera" or a side of at least one patch, {patch_size} pixels: {resolution!r}'
    )
