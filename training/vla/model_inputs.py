"""The workers' batch to what the model reads, on the device: pictures augmented and resized, targets beside them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.policy_interface import Batch, unit_range
from rocket_hf.modeling.processing_rocket import RocketProcessor

from ..data.augmentation import augment
from ..data.batches import RobotBatch
from .targets import Targets, TargetSource

# What the model reads as the workers made it.
HANDED_ON = (
    "camera_mask", "input_ids", "attention_mask", "state", "actions", "action_is_pad", "noise", "time",
    "episode_index", "frame_index",
)  # fmt: skip


class Preparation:
    def __init__(
        self, config: RocketConfig, processor: RocketProcessor, targets: TargetSource | None, device: torch.device
    ):
        self.config, self.processor, self.targets, self.device = config, processor, targets, device

    def student(self, raw: RobotBatch) -> tuple[Batch, list[Tensor], Tensor | None]:
        """The model's batch, the augmented pictures by camera, and where they came from: (B, V, 2, 3) or None."""
        batch = Batch(**{key: raw[key].to(self.device, non_blocking=True) for key in HANDED_ON if key in raw})  # type: ignore
        pictures = [unit_range(images.to(self.device, non_blocking=True)) for images in raw["images"]]
        warp = None
        if "augmentation" in raw:
            drawn = raw["augmentation"].unbind(dim=1)
            augmented = [augment(picture, rows) for picture, rows in zip(pictures, drawn, strict=True)]
            pictures, warps = [picture for picture, _ in augmented], [warp for _, warp in augmented]
            warp = torch.stack(warps, dim=1)
        batch["images"] = self.resized(pictures, batch["camera_mask"])
        return batch, pictures, warp

    def resized(self, pictures: Sequence[Tensor], camera_mask: Tensor) -> Tensor:
        """(B, V, 3, size, size), black where a camera is missing."""
        names = self.processor.cameras
        images = dict(zip(names, pictures, strict=True))
        masks = dict(zip(names, camera_mask.unbind(dim=1), strict=True))
        return self.processor.prepare_images(images, masks)[0]

    def teacher(self, raw: RobotBatch, pictures: Sequence[Tensor], warp: Tensor | None) -> Targets | None:
        return None if self.targets is None else self.targets(raw, pictures, warp)

    def no_targets(self, batch: Batch) -> Targets | None:
        """Zeros, for steps in which alignment counts nothing: the head passes over them, and the teacher rests."""
        if self.targets is None:
            return None
        rows, columns = self.config.policy_config.image_grid
        shape = (*batch["camera_mask"].shape, rows * columns, self.targets.width)
        return {layer: torch.zeros(shape, device=self.device) for layer in self.config.alignment.teacher_layers}
