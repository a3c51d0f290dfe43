"""ROCKET-2's eyes: what the agent sees and what it is shown, read together by a few learned queries.

There are no buffers and no positions but those of the encoders: the goal's view may be any camera's.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_rocket2 import Rocket2Config
from .contract import unit_range
from .vit_block import VitBlock

PIXEL_MEAN, PIXEL_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class PatchEncoder(nn.Module):
    """A vision transformer whose class token has a position too; read before its final norm, which is not made."""

    def __init__(self, channels: int, config: Rocket2Config, depth: int, width: int, heads: int, mlp_width: int):
        super().__init__()
        rows, columns = config.grid
        self.patch_embedding = nn.Conv2d(channels, width, kernel_size=config.patch_size, stride=config.patch_size)
        self.class_token = nn.Embedding(1, width)
        self.position_embedding = nn.Embedding(1 + rows * columns, width)
        self.blocks = nn.ModuleList(VitBlock(width, heads, mlp_width, scaled=False) for _ in range(depth))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, channels, H, W) to the features of the patches (N, P, width), row by row."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        token = self.class_token.weight.expand(len(patches), -1, -1)
        stream = torch.cat([token, patches], dim=1) + self.position_embedding.weight
        for block in self.blocks:
            stream = block(stream)
        return stream[:, 1:]


class SpatialLayer(GradientCheckpointingLayer, nn.TransformerEncoderLayer):
    """torch's post-norm layer, which may be computed again in the backward pass."""


class ViewReader(nn.Module):
    def __init__(self, config: Rocket2Config):
        super().__init__()
        self.rgb_frozen = config.rgb_frozen
        width, c = config.width, config
        self.rgb = PatchEncoder(3, config, c.rgb_depth, c.rgb_width, c.rgb_heads, c.rgb_mlp_width)
        self.mask = PatchEncoder(1, config, c.mask_depth, c.mask_width, c.mask_heads, c.mask_mlp_width)
        self.agent_projection = nn.Conv2d(c.rgb_width, width, kernel_size=1, bias=False)
        self.goal_projection = nn.Conv2d(c.rgb_width + c.mask_width, width, kernel_size=1, bias=False)
        self.queries = nn.Embedding(config.view_tokens, width)
        self.layers = nn.ModuleList(
            SpatialLayer(width, config.heads, 2 * width, config.spatial_dropout, batch_first=True)
            for _ in range(config.spatial_layers)
        )

        self.freeze()

    def freeze(self) -> None:
        """Pictures are encoded as they were before training, if the configuration says so."""
        self.rgb.requires_grad_(not self.rgb_frozen)

    def agent_tokens(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, P, D)."""
        return project(self.agent_projection, self.picture_features(images))

    def goal_tokens(self, images: Tensor, masks: Tensor) -> Tensor:
        """(N, 3, H, W) and (N, H, W) to (N, P, D)."""
        shapes = self.mask(masks[:, None].to(self.queries.weight.dtype))
        return project(self.goal_projection, torch.cat([self.picture_features(images), shapes], dim=-1))

    def picture_features(self, images: Tensor) -> Tensor:
        unit = unit_range(images)
        channels = zip(unit.unbind(1), PIXEL_MEAN, PIXEL_DEVIATION, strict=True)
        pixels = torch.stack([(channel - middle) / spread for channel, middle, spread in channels], dim=1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.rgb_frozen):
            return self.rgb(pixels.to(self.queries.weight.dtype))

    def forward(self, agent: Tensor, goal: Tensor) -> Tensor:
        """The tokens of both views, each (N, P, D), to what the queries read of them: (N, view tokens, D)."""
        stream = torch.cat([self.queries.weight.expand(len(agent), -1, -1), agent, goal], dim=1)
        for layer in self.layers:
            stream = layer(stream)
        return stream[:, : self.queries.num_embeddings]


def project(convolution: nn.Conv2d, features: Tensor) -> Tensor:
    """A convolution of single patches, (N, P, C) to (N, P, D)."""
    return convolution(features.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
