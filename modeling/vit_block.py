"""Vision transformer block that computes the same function as timm's `Block`, without depending on timm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

NORM_EPS = 1e-6


class LayerScale(nn.Module):
    """Learned factor for each channel of (..., width), initialized near zero so that a block starts as an identity."""

    INITIAL_VALUE = 1e-5

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), self.INITIAL_VALUE))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.weight


class VitBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block with exact GELU and, in DINOv2, a LayerScale after attention and MLP."""

    def __init__(self, width: int, heads: int, mlp_width: int, has_layer_scale: bool):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.attention_scale = LayerScale(width) if has_layer_scale else nn.Identity()
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)
        self.mlp_scale = LayerScale(width) if has_layer_scale else nn.Identity()

    def forward(self, stream: Tensor) -> Tensor:
        """Add the attention and MLP branches to the residual stream, (N, tokens, width)."""
        stream = stream + self.attention_scale(self.attend(self.attention_norm(stream)))
        return stream + self.mlp_scale(self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(stream)))))

    def attend(self, hidden: Tensor) -> Tensor:
        """Apply unmasked multi-head self-attention, including its projections, to (N, tokens, width)."""
        query, key, value = self.qkv(hidden).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.attention_out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
