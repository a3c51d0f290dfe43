"""Attention as all layers of one pass share it: who sees whom, at which rotary positions, by which implementation."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma.modeling_gemma import GemmaAttention, eager_attention_forward
from transformers.models.llama.modeling_llama import LlamaAttention

MASKED = torch.finfo(torch.bfloat16).min  # finite in bfloat16 and in float32
KeysValues = tuple[Tensor, Tensor]  # each (B, kv_heads, sequence, head_dim)
type Attention = GemmaAttention | LlamaAttention  # used for their projections and numbers, not called


@dataclass
class AttentionInputs:
    """Sequence: the queries of the pass; keys: cached ones first."""

    mask: Tensor  # (B, 1, sequence, keys), added to the attention logits
    cosines: Tensor  # (B, 1, sequence, head_dim)
    sines: Tensor

    def part(self, queries: slice, keys: int | None = None) -> "AttentionInputs":
        """The same for some of the queries and the first `keys` keys, or all of them."""
        return AttentionInputs(self.mask[:, :, queries, :keys], self.cosines[:, :, queries], self.sines[:, :, queries])


def attention_inputs(mask: Tensor, positions: Tensor, head_dim: int, theta: float) -> AttentionInputs:
    """From a boolean mask (B, sequence, keys) and positions (B, sequence). A row that may see nothing stays finite."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[..., None].float() * theta**-exponent  # (B, sequence, head_dim / 2)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    added = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, MASKED)[:, None]
    return AttentionInputs(added, angles.cos(), angles.sin())


def attend(module: Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention by the implementation that the configuration names: (B, sequence, heads x head_dim)."""
    function = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention_forward)
    attended, _ = function(module, query, key, value, mask.to(query.dtype), scaling=module.scaling, dropout=0.0)
    return attended.flatten(2)


def rotate(states: Tensor, shared: AttentionInputs) -> Tensor:
    """Rotary positions, in the two-halves layout of Gemma and Llama."""
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return states * shared.cosines.type_as(states) + turned * shared.sines.type_as(states)
