"""Resizing of large camera images to the size at which a policy reads them, before they are augmented.

The public training code of pi0 and OpenVLA resizes images before it augments them. An augmentation costs as much time
as its image has pixels, so this is several times faster for images of, for example, 480 x 640 pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rocket_hf.modeling.image_resizing import bilinear, bilinear_antialiased
from rocket_hf.modeling.processing_rocket import RocketProcessor

LARGE_IMAGE_RATIO = 4  # an image is large if it has more than this many times the pixels that the policy reads

ImageSize = tuple[int, int]  # height, width


@dataclass(frozen=True)
class ImageResizer:
    """Resizer with the settings of a policy's processor, which then changes the size of these images no more."""

    side: int  # of the policy's square images
    method: str
    interpolation: str

    @classmethod
    def for_processor(cls, processor: RocketProcessor, side: int) -> "ImageResizer":
        return cls(side, processor.resize, processor.interpolation)

    def target_size(self, size: ImageSize) -> ImageSize:
        """Return the size of the policy's image without its bars; the image's own size if it is not large."""
        height, width = size
        ratio = max(height, width) / self.side
        target = (max(1, int(height / ratio)), max(1, int(width / ratio)))
        if self.method == "stretch":
            target = (self.side, self.side)
        is_large = height * width > LARGE_IMAGE_RATIO * target[0] * target[1]
        return target if is_large else size

    def __call__(self, image: Tensor) -> Tensor:
        """Resize an image (3, H, W) uint8 as the processor does, rounded to uint8."""
        height, width = image.shape[1:]
        target = self.target_size((height, width))
        if target == (height, width):
            return image
        if self.interpolation == "bicubic":
            return resize_with_pillow(image, target)
        resample = bilinear_antialiased if self.method == "stretch" else bilinear
        return (resample(image[None].float() / 255, target)[0] * 255).round().to(torch.uint8)


def resize_with_pillow(image: Tensor, size: ImageSize) -> Tensor:
    """Resize with Pillow itself, which the processor reproduces on any device: on a CPU it is ten times faster."""
    import numpy as np
    from PIL import Image

    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
