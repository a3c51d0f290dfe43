"""SigLIP's image encoder without its pooling head, built from transformers' encoder layers.

It has no buffers and its own weight names, because transformers' SigLIP model renamed its weights between 5.5 and 5.23.
"""

from torch import Tensor, nn
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from .policy_interface import to_unit_range


class SiglipTower(nn.Module):
    """SigLIP up to and including its final norm."""

    def __init__(self, config: SiglipVisionConfig):
        super().__init__()
        patch, positions = config.patch_size, (config.image_size // config.patch_size) ** 2
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=patch, stride=patch)
        self.position_embedding = nn.Embedding(positions, config.hidden_size)
        self.layers = nn.ModuleList(SiglipEncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (N, 3, H, W), uint8 or in [0, 1], to patch features (N, rows x columns, width), row by row."""
        pixels = (to_unit_range(images) * 2 - 1).to(self.patch_embedding.weight.dtype)
        hidden = self.patch_embedding(pixels).flatten(2).transpose(1, 2) + self.position_embedding.weight
        for layer in self.layers:
            hidden = layer(hidden, None)
        return self.norm(hidden)
