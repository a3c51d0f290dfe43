"""Base class of all teachers: input size, pixel normalization, scenes with missing cameras, and no gradients.

A subclass implements only `scene_features`: from the frames of complete scenes to the requested layers.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rocket_hf.errors import UserError
from rocket_hf.modeling.policy_interface import to_unit_range

from .scene import resize_images
from .teacher import Features, Resolution, Teacher, TeacherCard

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrozenTeacher(Teacher):
    """A teacher around a torch module in evaluation mode, without gradients."""

    unused_tensors: Sequence[str] = ()  # names of the checkpoint's tensors that no feature depends on

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
        native = self.card.image_size // patch * patch
        sides = {"teacher": native, "camera": longer}
        side = sides[self.resolution] if isinstance(self.resolution, str) else self.resolution
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
            raise ValueError(
                f"a teacher needs images of shape (batch, cameras, 3, height, width), got {tuple(images.shape)}"
            )
        numbers = {layer: self.card.resolve_layer(layer) for layer in layers}
        kind = "cpu" if self.device.type == "meta" else self.device.type
        with torch.autocast(kind, enabled=False):
            maps = self.features_of_present_cameras(self.normalize(images), sorted(set(numbers.values())), camera_mask)
        return Features({layer: maps[number] for layer, number in numbers.items()}, self.grid(*images.shape[-2:]))

    @abstractmethod
    def scene_features(self, pixels: Tensor, layers: list[int]) -> dict[int, Tensor]:
        """Return the features (B, V, P, C) of normalized frames (B, V, 3, H, W), all present.

        `layers` are numbers in 1..depth in ascending order.
        """

    def normalize(self, images: Tensor) -> Tensor:
        """Resize images to the teacher's input size and normalize them: (B, V, 3, H, W)."""
        frames = to_unit_range(images.to(self.device).flatten(0, 1)).float()
        frames = resize_images(frames, self.input_size(*frames.shape[-2:]))
        return ((frames - self.mean) / self.std).to(self.dtype).unflatten(0, images.shape[:2])

    def features_of_present_cameras(
        self, pixels: Tensor, layers: list[int], camera_mask: Tensor | None
    ) -> dict[int, Tensor]:
        """Run samples that have the same cameras together, each as a scene of its present cameras only."""
        if camera_mask is None or bool(camera_mask.all()):
            return self.scene_features(pixels, layers)
        patches = (pixels.shape[-2] // self.card.patch_size) * (pixels.shape[-1] // self.card.patch_size)
        shape = (*pixels.shape[:2], patches, self.card.width)
        features = {layer: pixels.new_zeros(shape) for layer in layers}
        camera_mask = camera_mask.to(self.device)
        for pattern in camera_mask.unique(dim=0):
            samples = (camera_mask == pattern).all(dim=1).nonzero()  # (samples, 1)
            cameras = pattern.nonzero().flatten()
            if len(cameras):
                scenes = self.scene_features(pixels[samples, cameras], layers)
                for layer, maps in scenes.items():
                    features[layer][samples, cameras] = maps
        return features


def check_resolution(resolution: Resolution, patch_size: int) -> Resolution:
    if resolution in ("teacher", "camera") or (isinstance(resolution, int) and resolution >= patch_size):
        return resolution
    raise UserError(
        f'resolution must be "teacher", "camera" or a side of at least one patch ({patch_size} pixels), '
        f"got {resolution!r}"
    )
