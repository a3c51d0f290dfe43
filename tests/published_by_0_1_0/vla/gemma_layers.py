"""The halves of pi0's joint layers, from transformers' Gemma modules, and the norms that pi0.5 adds to them."""

import torch
from torch import Tensor, nn
from transformers import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaAttention, GemmaMLP, GemmaRMSNorm

from .joint_transformer import HalfLayer


class Modulation(nn.Linear):
    """A Linear that starts at zero, so that an untrained norm is a plain one with its residual branch switched off."""


class AdaptiveNorm(nn.Module):
    """pi0.5's norm: scale, shift and a gate for the residual branch come from the embedded flow time."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.modulation = Modulation(width, 3 * width)

    def forward(self, hidden: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden (B, sequence, width) and condition (B, width) to the normalised hidden state and the gate."""
        scale, shift, gate = self.modulation(condition)[:, None].chunk(3, dim=-1)
        wide = hidden.float()
        normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normalised * (1 + scale.float()) + shift.float()).type_as(hidden), gate.type_as(hidden)


class PlainNorm(GemmaRMSNorm):
    """Gemma's norm in the form of the adaptive one: there is no gate."""

    def forward(self, hidden: Tensor, condition: Tensor | None = None) -> tuple[Tensor, None]:
        return super().forward(hidden), None


def gemma_half(config: GemmaConfig, layer_index: int, adaptive: bool) -> HalfLayer:
    norm = AdaptiveNorm if adaptive else PlainNorm
    attention_norm, mlp_norm = (norm(config.hidden_size, eps=config.rms_norm_eps) for _ in range(2))
    return HalfLayer(GemmaAttention(config, layer_index), GemmaMLP(config), attention_norm, mlp_norm)
