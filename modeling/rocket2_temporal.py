"""Temporal transformer of ROCKET-2: a Transformer-XL over the tokens of all steps, with banded attention and a memory.

A token attends to itself and the `window - 1` tokens before it, also those of earlier chunks. The attention bias is a
function of the distance of two tokens: a mixture of ten learned curves, whose mixture weights depend on the later
token.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .rocket2_interface import Memory

BIAS_CURVES = 10  # number of learned functions of distance that each token mixes to the attention bias of a head
# Norm of the rows of initial weights of each layer. With these, initial attention is nearly uniform.
QUERY_SCALE, KEY_SCALE, MIXTURE_SCALE, CURVE_SCALE = 0.1, 0.2, 0.1, 0.2


class FanInLinear(nn.Linear):
    """Linear layer whose initial weights have rows of norm `scale`, so that outputs do not depend on the width."""

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0, bias: bool = True):
        super().__init__(inputs, outputs, bias)
        self.scale = scale

    def initial_weight(self) -> Tensor:
        rows = torch.rand_like(self.weight) * 2 - 1
        return rows * (self.scale / rows.norm(dim=1, keepdim=True))


class DistanceCurves(nn.Module):
    """Attention bias as a function of distance."""

    def __init__(self, window: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(BIAS_CURVES, window) * CURVE_SCALE)

    def forward(self, mixture: Tensor, keys: int) -> Tensor:
        """Return the bias (B, heads, t, keys) of t tokens for the last `keys` tokens, which end with the t tokens.

        The biases of row i belong to the columns i to i + window - 1 of all keys. Padding each row by t and reading the
        flat values with a width that is smaller by one shifts each row by one column, without any indexing.

        Args:
            mixture: Mixture weights of each token, (B, heads, t, curves).
            keys: Number of keys.
        """
        by_distance = mixture @ self.weight.flip(-1)  # (B, heads, t, window), largest distance first
        steps, window = by_distance.shape[-2:]
        shifted = F.pad(by_distance, (0, steps)).flatten(-2)[..., :-steps]
        return shifted.unflatten(-1, (steps, window + steps - 1))[..., -keys:]


class BandedAttention(nn.Module):
    """Attention with a limited window and a distance-dependent bias."""

    def __init__(self, width: int, heads: int, window: int, scale: float):
        super().__init__()
        self.heads = heads
        self.query = FanInLinear(width, width, QUERY_SCALE)
        self.key = FanInLinear(width, width, KEY_SCALE, bias=False)
        self.value = FanInLinear(width, width, math.sqrt(scale), bias=False)
        self.output = FanInLinear(width, width, math.sqrt(scale))
        self.mixture = FanInLinear(width, BIAS_CURVES * heads, MIXTURE_SCALE)
        self.curves = DistanceCurves(window)

    def forward(self, hidden: Tensor, past: tuple[Tensor, Tensor], allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output (B, t, D), and the keys and values (B, m + t, D) of past and current tokens.

        Args:
            hidden: Current tokens, (B, t, D).
            past: Keys and values of past tokens, each (B, m, D).
            allowed: (B, 1, t, m + t) bool, which token may attend to which.
        """
        key, value = self.key(hidden), self.value(hidden)
        keys = torch.cat([past[0].to(key.dtype), key], dim=1)
        values = torch.cat([past[1].to(value.dtype), value], dim=1)
        query = self.split(self.query(hidden))
        bias = self.curves(self.split(self.mixture(hidden)), keys.shape[1]).to(query.dtype)
        bias = bias.masked_fill(~allowed, float("-inf"))
        attended = F.scaled_dot_product_attention(
            query, self.split(keys), self.split(values), attn_mask=bias, scale=1 / query.shape[-1]
        )  # scaled by 1 / head_dim, not by its square root
        return self.output(attended.transpose(1, 2).flatten(2)), keys, values

    def split(self, hidden: Tensor) -> Tensor:
        """Split (B, t, D) into heads: (B, heads, t, D / heads)."""
        return hidden.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class TemporalBlock(GradientCheckpointingLayer):
    """Transformer block whose first norm applies to the stream itself: attention is added to the normalized stream."""

    def __init__(self, width: int, heads: int, window: int, scale: float):
        super().__init__()
        self.stream_norm = nn.LayerNorm(width)
        self.attention = BandedAttention(width, heads, window, scale)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = FanInLinear(width, 4 * width, bias=False)
        self.mlp_out = FanInLinear(4 * width, width, scale)

    def forward(self, stream: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stream = self.stream_norm(stream)
        attended, keys, values = self.attention(stream, (keys, values), allowed)
        stream = stream + attended
        return stream + self.mlp_out(F.relu(self.mlp_in(self.mlp_norm(stream)))), keys, values


class TemporalTransformer(nn.Module):
    """Transformer over the tokens of consecutive steps that continues from a memory of earlier tokens."""

    def __init__(self, width: int, heads: int, layers: int, window: int):
        super().__init__()
        self.window = window
        scale = 1 / math.sqrt(2 * layers)  # the two branches of all layers add up to a variance of 1
        self.blocks = nn.ModuleList(TemporalBlock(width, heads, window, scale) for _ in range(layers))
        self.output_norm = nn.LayerNorm(width)
        self.output = FanInLinear(width, width, bias=False)
        self.final_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Transform tokens (B, t, D); return them and the memory that includes them."""
        stream, (valid, allowed) = tokens, self.attention_band(memory.valid, tokens.shape[1])
        kept = []
        for block, past_keys, past_values in zip(self.blocks, memory.keys, memory.values, strict=True):
            stream, *own = block(stream, past_keys, past_values, allowed)
            kept.append([self.recent(tensor.detach()) for tensor in own])
        keys, values = (torch.stack(tensors) for tensors in zip(*kept, strict=True))
        stream = F.relu(self.output(self.output_norm(F.relu(stream))))
        return self.final_norm(stream), Memory(self.recent(valid), keys, values)

    def attention_band(self, past: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """Return which past and current tokens exist (B, m + t), and which may attend to which (B, 1, t, m + t).

        Args:
            past: (B, m) bool, which tokens of the memory exist.
            tokens: Number t of current tokens.
        """
        valid = F.pad(past, (0, tokens), value=True)
        ones = past.new_ones(tokens, self.window - 1 + tokens)
        band = ones.triu() & ones.tril(self.window - 1)
        return valid, (band[:, -valid.shape[1] :] & valid[:, None])[:, None]

    def recent(self, tokens: Tensor) -> Tensor:
        """Return the last tokens of (B, m + t, ...), to which the next token can attend."""
        return tokens[:, max(0, tokens.shape[1] - self.window + 1) :]

    def empty_memory(self, batch: int, full: bool) -> Memory:
        """Return a memory without tokens.

        With `full` it has the size of a full memory, so that each step costs the same when the policy acts; without,
        its size is 0, for the first chunk of an episode in training.
        """
        weight, size = self.output.weight, self.window - 1 if full else 0
        zeros = weight.new_zeros(len(self.blocks), batch, size, weight.shape[1])
        return Memory(torch.zeros(batch, size, dtype=torch.bool, device=weight.device), zeros, zeros)
