"""ROCKET-2's sense of time: a Transformer-XL over the tokens of all steps, with a band of attention and a memory.

A token sees itself and the `window - 1` tokens before it, in whichever chunk they came. The bias of a pair of tokens
depends on their distance alone and is a mixture of ten learned curves, mixed by what the later token says.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .rocket2_contract import Memory

CURVES = 10
# How large the rows of new weights are, by layer: attention starts out nearly even.
QUERY_SCALE, KEY_SCALE, MIXTURE_SCALE, CURVE_SCALE = 0.1, 0.2, 0.1, 0.2


class FanInLinear(nn.Linear):
    """New weights have rows of length `scale`, so that what goes in does not grow or shrink with the width."""

    def __init__(self, inputs: int, outputs: int, scale: float = 1.0, bias: bool = True):
        super().__init__(inputs, outputs, bias)
        self.scale = scale

    def fresh_weight(self) -> Tensor:
        rows = torch.rand_like(self.weight) * 2 - 1
        return rows * (self.scale / rows.norm(dim=1, keepdim=True))


class DistanceCurves(nn.Module):
    """The bias of attention by distance."""

    def __init__(self, window: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CURVES, window) * CURVE_SCALE)

    def forward(self, mixture: Tensor, keys: int) -> Tensor:
        """How each token mixes the curves (B, heads, t, curves) to its bias for the last `keys` tokens that end with
        its own: (B, heads, t, keys).

        The bias of row i belongs at the columns i to i + window - 1 of all that the t tokens see. Rows padded by t
        and read again with a width that is smaller by one shift by one column each, without any index.
        """
        by_distance = mixture @ self.weight.flip(-1)  # (B, heads, t, window), the farthest first
        steps, window = by_distance.shape[-2:]
        shifted = F.pad(by_distance, (0, steps)).flatten(-2)[..., :-steps]
        return shifted.unflatten(-1, (steps, window + steps - 1))[..., -keys:]


class BandedAttention(nn.Module):
    def __init__(self, width: int, heads: int, window: int, scale: float):
        super().__init__()
        self.heads = heads
        self.query = FanInLinear(width, width, QUERY_SCALE)
        self.key = FanInLinear(width, width, KEY_SCALE, bias=False)
        self.value = FanInLinear(width, width, math.sqrt(scale), bias=False)
        self.output = FanInLinear(width, width, math.sqrt(scale))
        self.mixture = FanInLinear(width, CURVES * heads, MIXTURE_SCALE)
        self.curves = DistanceCurves(window)

    def forward(self, hidden: Tensor, past: tuple[Tensor, Tensor], allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The answer (B, t, D), and the keys and values of past and present (B, m + t, D)."""
        key, value = self.key(hidden), self.value(hidden)
        keys = torch.cat([past[0].to(key.dtype), key], dim=1)
        values = torch.cat([past[1].to(value.dtype), value], dim=1)
        query = self.split(self.query(hidden))
        bias = self.curves(self.split(self.mixture(hidden)), keys.shape[1]).to(query.dtype)
        bias = bias.masked_fill(~allowed, float("-inf"))
        read = F.scaled_dot_product_attention(
            query, self.split(keys), self.split(values), attn_mask=bias, scale=1 / query.shape[-1]
        )  # by the size of a head, not by its root
        return self.output(read.transpose(1, 2).flatten(2)), keys, values

    def split(self, hidden: Tensor) -> Tensor:
        """(B, t, D) to (B, heads, t, D / heads)."""
        return hidden.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class TemporalBlock(GradientCheckpointingLayer):
    """The first norm is on the stream itself, so attention adds to what is normalised."""

    def __init__(self, width: int, heads: int, window: int, scale: float):
        super().__init__()
        self.stream_norm = nn.LayerNorm(width)
        self.attention = BandedAttention(width, heads, window, scale)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = FanInLinear(width, 4 * width, bias=False)
        self.mlp_out = FanInLinear(4 * width, width, scale)

    def forward(self, stream: Tensor, keys: Tensor, values: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stream = self.stream_norm(stream)
        read, keys, values = self.attention(stream, (keys, values), allowed)
        stream = stream + read
        return stream + self.mlp_out(F.relu(self.mlp_in(self.mlp_norm(stream)))), keys, values


class TemporalTransformer(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, window: int):
        super().__init__()
        self.window = window
        scale = 1 / math.sqrt(2 * layers)  # two branches a layer add up to one
        self.blocks = nn.ModuleList(TemporalBlock(width, heads, window, scale) for _ in range(layers))
        self.output_norm = nn.LayerNorm(width)
        self.output = FanInLinear(width, width, bias=False)
        self.final_norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """(B, t, D) to the same, and the memory with these tokens in it."""
        stream, (valid, allowed) = tokens, self.visible(memory.valid, tokens.shape[1])
        kept = []
        for block, past_keys, past_values in zip(self.blocks, memory.keys, memory.values, strict=True):
            stream, *own = block(stream, past_keys, past_values, allowed)
            kept.append([self.recent(tensor.detach()) for tensor in own])
        keys, values = (torch.stack(tensors) for tensors in zip(*kept, strict=True))
        stream = F.relu(self.output(self.output_norm(F.relu(stream))))
        return self.final_norm(stream), Memory(self.recent(valid), keys, values)

    def visible(self, remembered: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Which tokens of past and present exist (B, m + t), and which each of the present sees (B, 1, t, m + t)."""
        valid = F.pad(remembered, (0, steps), value=True)
        everything = remembered.new_ones(steps, self.window - 1 + steps)
        band = everything.triu() & everything.tril(self.window - 1)
        return valid, (band[:, -valid.shape[1] :] & valid[:, None])[:, None]

    def recent(self, tokens: Tensor) -> Tensor:
        """The last ones of (B, m + t, ...) that the next token may see."""
        return tokens[:, max(0, tokens.shape[1] - self.window + 1) :]

    def empty_memory(self, batch: int, full: bool) -> Memory:
        """Nothing, in no room: for chunks. Or in `full` room, so that each step costs the same: for acting."""
        weight, room = self.output.weight, self.window - 1 if full else 0
        none = weight.new_zeros(len(self.blocks), batch, room, weight.shape[1])
        return Memory(torch.zeros(batch, room, dtype=torch.bool, device=weight.device), none, none)
