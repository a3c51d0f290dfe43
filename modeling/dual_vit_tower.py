"""Vision tower of OpenVLA: the patch features of DINOv2 and SigLIP, concatenated.

The features of both are taken before the last block and without the final norm, so these two are not created. There are
no
buffers: each tower normalizes its own pixels. The attention is torch's own, whichever the language model uses.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .configuration_openvla import OpenVLAPolicyConfig
from .policy_interface import to_unit_range
from .vit_block import VitBlock

# Mean and standard deviation of the pixels in the published preprocessor. DINOv2's are ImageNet's, rounded to bfloat16.
DINO_PIXELS = ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375))
SIGLIP_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class TowerSizes(NamedTuple):
    """Sizes and pixel normalization of one vision transformer."""

    depth: int  # including the last block, which is not created
    width: int
    heads: int
    mlp_width: int
    prefix_tokens: int  # learned tokens before the patches: the class token and the registers
    has_layer_scale: bool
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]


class VitTower(nn.Module):
    """Vision transformer up to its second-to-last block."""

    def __init__(self, sizes: TowerSizes, image_size: int, patch_size: int):
        super().__init__()
        width, self.sizes = sizes.width, sizes
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
        self.position_embedding = nn.Embedding((image_size // patch_size) ** 2, width)
        self.prefix = nn.Embedding(sizes.prefix_tokens, width) if sizes.prefix_tokens else None
        self.blocks = nn.ModuleList(
            VitBlock(width, sizes.heads, sizes.mlp_width, sizes.has_layer_scale) for _ in range(sizes.depth - 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (N, 3, H, W) in [0, 1] to patch features (N, rows x columns, width), row by row."""
        channels = zip(images.unbind(1), self.sizes.pixel_mean, self.sizes.pixel_std, strict=True)
        pixels = torch.stack([(channel - mean) / std for channel, mean, std in channels], dim=1)
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        stream = patches + self.position_embedding.weight
        if self.prefix is not None:  # added after the position embedding, because these tokens have no position
            stream = torch.cat([self.prefix.weight.expand(len(stream), -1, -1), stream], dim=1)
        for block in self.blocks:
            stream = block(stream)
        return stream[:, -patches.shape[1] :]


class DualVitTower(nn.Module):
    """DINOv2 and SigLIP on the same images."""

    def __init__(self, config: OpenVLAPolicyConfig):
        super().__init__()
        dino = TowerSizes(
            config.dino_depth, config.dino_width, config.dino_heads, config.dino_mlp_width,
            1 + config.dino_registers, True, *DINO_PIXELS,
        )  # fmt: skip
        siglip = TowerSizes(
            config.siglip_depth, config.siglip_width, config.siglip_heads, config.siglip_mlp_width,
            0, False, *SIGLIP_PIXELS,
        )  # fmt: skip
        self.dino = VitTower(dino, config.image_size, config.patch_size)
        self.siglip = VitTower(siglip, config.image_size, config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (N, 3, H, W), uint8 or in [0, 1], to (N, rows x columns, dino_width + siglip_width)."""
        unit = to_unit_range(images)
        return torch.cat([self.dino(unit), self.siglip(unit)], dim=-1)
