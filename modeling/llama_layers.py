"""Half layers of SmolVLA, built from transformers' Llama modules."""

from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from .joint_transformer import HalfLayer


class LlamaNorm(LlamaRMSNorm):
    """Llama's norm with the signature that `HalfLayer` needs: it ignores the condition and returns no gate."""

    def forward(self, hidden: Tensor, condition: Tensor | None = None) -> tuple[Tensor, None]:
        return super().forward(hidden), None


def create_llama_half(config: LlamaConfig, layer_index: int) -> HalfLayer:
    attention_norm, mlp_norm = (LlamaNorm(config.hidden_size, eps=config.rms_norm_eps) for _ in range(2))
    return HalfLayer(LlamaAttention(config, layer_index), LlamaMLP(config), attention_norm, mlp_norm)
