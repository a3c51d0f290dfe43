"""Decoder layers of SmolVLA's language model and action expert, built from transformers' Llama modules.

Each is one half of a joint layer, see joint_transformer.py.
"""

from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from .joint_transformer import HalfLayer


class LlamaNorm(LlamaRMSNorm):
    """Llama's RMSNorm with the signature that `HalfLayer` needs: it ignores the condition and returns None as gate."""

    def forward(self, hidden: Tensor, condition: Tensor | None = None) -> tuple[Tensor, None]:
        return super().forward(hidden), None


def create_llama_half_layer(config: LlamaConfig, layer_index: int) -> HalfLayer:
    """Create the Llama layer of the language model or of the expert, depending on whose `config` it gets."""
    attention_norm, mlp_norm = (LlamaNorm(config.hidden_size, eps=config.rms_norm_eps) for _ in range(2))
    return HalfLayer(LlamaAttention(config, layer_index), LlamaMLP(config), attention_norm, mlp_norm)
