"""View encoder of ROCKET-2: learned queries read the agent's view and the goal's view together.

There are no buffers, and no position embeddings except those of the image encoders, because the goal's view may come
from any camera.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_rocket2 import Rocket2Config
from .policy_interface import to_unit_range
from .vit_block import VitBlock

PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


class ViewPatchEncoder(nn.Module):
    """Vision transformer of images or masks, without its final norm. Its class token has a position embedding too."""

    def __init__(self, channels: int, config: Rocket2Config, depth: int, width: int, heads: int, mlp_width: int):
        super().__init__()
        rows, columns = config.grid
        self.patch_embedding = nn.Conv2d(channels, width, kernel_size=config.patch_size, stride=config.patch_size)
        self.class_token = nn.Embedding(1, width)
        self.position_embedding = nn.Embedding(1 + rows * columns, width)
        self.blocks = nn.ModuleList(VitBlock(width, heads, mlp_width, has_layer_scale=False) for _ in range(depth))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode (N, channels, H, W) to patch features (N, P, width), row by row."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        token = self.class_token.weight.expand(len(patches), -1, -1)
        stream = torch.cat([token, patches], dim=1) + self.position_embedding.weight
        for block in self.blocks:
            stream = block(stream)
        return stream[:, 1:]


class SpatialLayer(GradientCheckpointingLayer, nn.TransformerEncoderLayer):
    """torch's post-norm transformer layer with gradient checkpointing."""


class ViewEncoder(nn.Module):
    """Encoders of images and goal masks, and the spatial transformer that joins the two views."""

    def __init__(self, config: Rocket2Config):
        super().__init__()
        self.rgb_frozen = config.rgb_frozen
        width, c = config.width, config
        self.rgb = ViewPatchEncoder(3, config, c.rgb_depth, c.rgb_width, c.rgb_heads, c.rgb_mlp_width)
        self.mask = ViewPatchEncoder(1, config, c.mask_depth, c.mask_width, c.mask_heads, c.mask_mlp_width)
        self.agent_projection = nn.Conv2d(c.rgb_width, width, kernel_size=1, bias=False)
        self.goal_projection = nn.Conv2d(c.rgb_width + c.mask_width, width, kernel_size=1, bias=False)
        self.queries = nn.Embedding(config.view_tokens, width)
        self.layers = nn.ModuleList(
            SpatialLayer(width, config.heads, 2 * width, config.spatial_dropout, batch_first=True)
            for _ in range(config.spatial_layers)
        )

        self.freeze()

    def freeze(self) -> None:
        """Exclude the image encoder from training if the configuration freezes it."""
        self.rgb.requires_grad_(not self.rgb_frozen)

    def agent_tokens(self, images: Tensor) -> Tensor:
        """Encode images of the agent's view, (N, 3, H, W), as (N, P, D)."""
        return project(self.agent_projection, self.image_features(images))

    def goal_tokens(self, images: Tensor, masks: Tensor) -> Tensor:
        """Encode goal images (N, 3, H, W) and masks (N, H, W) as (N, P, D)."""
        mask_features = self.mask(masks[:, None].to(self.queries.weight.dtype))
        return project(self.goal_projection, torch.cat([self.image_features(images), mask_features], dim=-1))

    def image_features(self, images: Tensor) -> Tensor:
        """Return the image encoder's patch features, (N, P, rgb_width), of images (N, 3, H, W)."""
        unit = to_unit_range(images)
        channels = zip(unit.unbind(1), PIXEL_MEAN, PIXEL_STD, strict=True)
        pixels = torch.stack([(channel - mean) / std for channel, mean, std in channels], dim=1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.rgb_frozen):
            return self.rgb(pixels.to(self.queries.weight.dtype))

    def forward(self, agent: Tensor, goal: Tensor) -> Tensor:
        """Return the queries (N, view tokens, D) after attending to the tokens of both views, each (N, P, D)."""
        stream = torch.cat([self.queries.weight.expand(len(agent), -1, -1), agent, goal], dim=1)
        for layer in self.layers:
            stream = layer(stream)
        return stream[:, : self.queries.num_embeddings]


def project(convolution: nn.Conv2d, features: Tensor) -> Tensor:
    """Apply a 1 x 1 convolution to patches: (N, P, C) to (N, P, D)."""
    return convolution(features.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
