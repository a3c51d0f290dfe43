"""Attention mask, rotary position embedding and attention function that all layers of a forward pass share."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma.modeling_gemma import GemmaAttention, eager_attention_forward
from transformers.models.llama.modeling_llama import LlamaAttention

MASKED = torch.finfo(torch.bfloat16).min  # finite in both bfloat16 and float32
KeysValues = tuple[Tensor, Tensor]  # each (B, kv_heads, sequence, head_dim)
type AttentionModule = GemmaAttention | LlamaAttention  # holds projections and sizes; its forward is not called


@dataclass
class AttentionInputs:
    """Mask and rotary embedding of a forward pass. The sequence has the queries; the keys start with cached ones."""

    mask: Tensor  # (B, 1, sequence, keys), added to the attention logits
    cosines: Tensor  # (B, 1, sequence, head_dim)
    sines: Tensor

    def select(self, queries: slice, keys: int | None = None) -> "AttentionInputs":
        """Return the inputs of some queries and of the first `keys` keys (default: all keys)."""
        return AttentionInputs(self.mask[:, :, queries, :keys], self.cosines[:, :, queries], self.sines[:, :, queries])


def attention_inputs(mask: Tensor, positions: Tensor, head_dim: int, theta: float) -> AttentionInputs:
    """Create the inputs from a boolean mask (B, sequence, keys) and positions (B, sequence).

    The additive mask is finite, so that a query that may attend to no key does not become NaN.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[..., None].float() * theta**-exponent  # (B, sequence, head_dim / 2)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    added = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, MASKED)[:, None]
    return AttentionInputs(added, angles.cos(), angles.sin())


def attend(module: AttentionModule, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Compute attention with the configured implementation; return (B, sequence, heads x head_dim)."""
    function = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention_forward)
    attended, _ = function(module, query, key, value, mask.to(query.dtype), scaling=module.scaling, dropout=0.0)
    return attended.flatten(2)


def apply_rotary_embedding(states: Tensor, shared: AttentionInputs) -> Tensor:
    """Rotate queries or keys by their positions, in the two-halves layout of Gemma and Llama."""
    first, second = states.chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return states * shared.cosines.type_as(states) + rotated * shared.sines.type_as(states)
