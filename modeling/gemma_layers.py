"""Half layers of pi0 and pi0.5, built from transformers' Gemma modules, and pi0.5's adaptive norm.

A half layer is the language model's or the expert's part of a joint layer, see joint_transformer.py.
"""

import torch
from torch import Tensor, nn
from transformers import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaAttention, GemmaMLP, GemmaRMSNorm

from .joint_transformer import HalfLayer


class ZeroInitLinear(nn.Linear):
    """Linear layer with zero weights and biases, so that the adaptive norm is initially a plain one with a gate of 0.

    The model's `_init_weights` initializes this class.
    """


class AdaptiveNorm(nn.Module):
    """RMS norm of pi0.5, whose scale, shift and residual gate are functions of the embedded flow time."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.modulation = ZeroInitLinear(width, 3 * width)

    def forward(self, hidden: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Normalize (B, sequence, width), with the scale and shift that the condition (B, width) gives.

        Returns:
            The normalized states, and the gate (B, 1, width) of the residual connection.
        """
        scale, shift, gate = self.modulation(condition)[:, None].chunk(3, dim=-1)
        precise = hidden.float()
        normalized = precise * torch.rsqrt(precise.square().mean(-1, keepdim=True) + self.eps)
        return (normalized * (1 + scale.float()) + shift.float()).type_as(hidden), gate.type_as(hidden)


class GemmaNorm(GemmaRMSNorm):
    """Gemma's RMSNorm with the signature of `AdaptiveNorm`: it ignores the condition and returns None as gate."""

    def forward(self, hidden: Tensor, condition: Tensor | None = None) -> tuple[Tensor, None]:
        return super().forward(hidden), None


def create_gemma_half_layer(config: GemmaConfig, layer_index: int, adaptive: bool) -> HalfLayer:
    """Create the Gemma layer of the language model or of the expert, depending on whose `config` it gets.

    Its norms are `AdaptiveNorm` if it is `adaptive`, as in the expert of pi0.5, and `GemmaNorm` otherwise.
    """
    norm = AdaptiveNorm if adaptive else GemmaNorm
    attention_norm, mlp_norm = (norm(config.hidden_size, eps=config.rms_norm_eps) for _ in range(2))
    return HalfLayer(GemmaAttention(config, layer_index), GemmaMLP(config), attention_norm, mlp_norm)
