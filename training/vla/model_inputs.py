"""Conversion of loader batches into inputs of the model, on the device.

The order of preprocessing is that of `RocketProcessor.__call__`. Its part for state, actions and text
(`encode_state_and_text`) has run in the loader's workers; `ModelInputs` adds its part for images (`prepare_images`),
after augmentation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.policy_interface import Batch, to_unit_range
from rocket_hf.modeling.processing_rocket import RocketProcessor

from ..data.augmentation import augment
from ..data.batches import LoaderBatch
from .targets import Targets, TargetSource

# Keys of a loader batch that the model reads unchanged.
PASSED_THROUGH_KEYS = (
    "camera_mask", "input_ids", "attention_mask", "state", "actions", "action_is_pad", "action_mask", "noise",
    "time", "episode_index", "frame_index",
)  # fmt: skip


class ModelInputs:
    """Inputs and alignment targets of a policy, computed from loader batches on `device`."""

    def __init__(
        self,
        config: RocketConfig,
        processor: RocketProcessor,
        target_source: TargetSource | None,
        device: torch.device,
    ):
        self.config, self.processor, self.target_source, self.device = config, processor, target_source, device

    def inputs(self, raw: LoaderBatch) -> tuple[Batch, list[Tensor], Tensor | None]:
        """Return the model's batch, the augmented images and the warps of the augmentation.

        The images are one tensor (B, 3, H, W) in [0, 1] per camera, each camera in its own size, as the teacher reads
        them. The warps (B, V, 2, 3) map places of augmented images to places of the originals; None without
        augmentation.
        """
        batch = Batch(**{key: raw[key].to(self.device, non_blocking=True) for key in PASSED_THROUGH_KEYS if key in raw})  # type: ignore
        images = [to_unit_range(camera_images.to(self.device, non_blocking=True)) for camera_images in raw["images"]]
        warp = None
        if "augmentation" in raw:
            parameters = raw["augmentation"].unbind(dim=1)
            aspects = raw["image_aspects"].unbind() if "image_aspects" in raw else [None] * len(images)
            augmented = [augment(*arguments) for arguments in zip(images, parameters, aspects, strict=True)]
            images = [image for image, _ in augmented]
            warp = torch.stack([camera_warp for _, camera_warp in augmented], dim=1)
        batch["images"] = self.prepare_images(images, batch["camera_mask"])
        return batch, images, warp

    def prepare_images(self, images: Sequence[Tensor], camera_mask: Tensor) -> Tensor:
        """Resize the images of each camera to the policy's size: (B, V, 3, size, size), black for missing cameras."""
        names = self.processor.cameras
        masks = dict(zip(names, camera_mask.unbind(dim=1), strict=True))
        return self.processor.prepare_images(dict(zip(names, images, strict=True)), masks)[0]

    def targets(self, raw: LoaderBatch, images: Sequence[Tensor], warp: Tensor | None) -> Targets | None:
        """Return the teacher's features for the images and warps of `inputs`; None without alignment."""
        return None if self.target_source is None else self.target_source(raw, images, warp)

    def zero_targets(self, batch: Batch) -> Targets | None:
        """Return targets of zeros, for steps whose alignment weight is 0.

        The alignment head still runs, so that each of its weights has a gradient; the teacher does not.
        """
        if self.target_source is None:
            return None
        rows, columns = self.config.policy_config.image_grid
        shape = (*batch["camera_mask"].shape, rows * columns, self.target_source.width)
        return {layer: torch.zeros(shape, device=self.device) for layer in self.config.alignment.teacher_layers}
