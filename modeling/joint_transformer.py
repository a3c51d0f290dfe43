"""A language model and an action expert that attend together, one module per depth.

The residual stream of the language model is passed from module to module in the open, so that taps need no hooks; a
layer is one unit of gradient checkpointing and of FSDP. Each half is made of transformers' Gemma modules.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GemmaConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma.modeling_gemma import GemmaAttention, GemmaMLP, GemmaRMSNorm, eager_attention_forward

MASKED = torch.finfo(torch.bfloat16).min  # finite in bfloat16 and in float32
KeysValues = tuple[Tensor, Tensor]  # each (B, kv_heads, sequence, head_dim)


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


def add_residual(stream: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    return stream + branch if gate is None else stream + branch * gate


class HalfLayer(nn.Module):
    """One decoder layer of one of the two models, split where the attention joins them."""

    def __init__(self, config: GemmaConfig, layer_index: int, adaptive: bool):
        super().__init__()
        norm = AdaptiveNorm if adaptive else PlainNorm
        self.attention_norm = norm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = GemmaAttention(config, layer_index)
        self.mlp_norm = norm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = GemmaMLP(config)

    def project(self, stream: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys, values (B, heads, sequence, head_dim) and the gate of the attention branch."""
        hidden, gate = self.attention_norm(stream, condition)
        layers = (self.attention.q_proj, self.attention.k_proj, self.attention.v_proj)
        query, key, value = (
            layer(hidden).unflatten(-1, (-1, self.attention.head_dim)).transpose(1, 2) for layer in layers
        )
        return query, key, value, gate

    def finish(self, stream: Tensor, attended: Tensor, gate: Tensor | None, condition: Tensor | None) -> Tensor:
        """Adds the attention branch, (B, sequence, heads x head_dim) before its output projection, then the MLP."""
        stream = add_residual(stream, self.attention.o_proj(attended), gate)
        hidden, gate = self.mlp_norm(stream, condition)
        return add_residual(stream, self.mlp(hidden), gate)


@dataclass
class AttentionInputs:
    """What all layers share in one pass. Sequence: the queries of the pass; keys: cached ones first."""

    mask: Tensor  # (B, 1, sequence, keys), added to the attention logits
    cosines: Tensor  # (B, 1, sequence, head_dim)
    sines: Tensor


class JointLayer(GradientCheckpointingLayer):
    """Runs the language half, the expert half or both; both attend to each other as the mask allows."""

    def __init__(self, language: GemmaConfig, expert: GemmaConfig, layer_index: int, adaptive: bool):
        super().__init__()
        self.language = HalfLayer(language, layer_index, adaptive=False)
        self.expert = HalfLayer(expert, layer_index, adaptive=adaptive)

    def forward(
        self,
        prefix: Tensor | None,
        suffix: Tensor | None,
        condition: Tensor | None,
        shared: AttentionInputs,
        cached: KeysValues | None = None,
        prefix_continues: bool = True,
    ) -> tuple[Tensor | None, Tensor | None, KeysValues]:
        """Prefix (B, P, width) and suffix (B, S, expert width) after this layer, and the keys and values of the pass.

        Where nothing reads the prefix any more (`prefix_continues` False), only its keys and values are computed.
        """
        halves = [(self.language, prefix, None), (self.expert, suffix, condition)]
        running = [(half, stream, extra) for half, stream, extra in halves if stream is not None]
        queries, keys, values, gates = zip(
            *(half.project(stream, extra) for half, stream, extra in running), strict=True
        )

        query, key, value = (torch.cat(parts, dim=2) for parts in (queries, keys, values))
        query, key = rotate(query, shared), rotate(key, shared)
        own: KeysValues = (key, value)
        if cached is not None:
            key, value = torch.cat([cached[0], key], dim=2), torch.cat([cached[1], value], dim=2)

        outputs = {}
        if suffix is not None or prefix_continues:
            attended = attend(self.expert.attention, query, key, value, shared.mask)
            pieces = attended.split([stream.shape[1] for _, stream, _ in running], dim=1)
            for (half, stream, extra), piece, gate in zip(running, pieces, gates, strict=True):
                if half is self.expert or prefix_continues:
                    outputs[half] = half.finish(stream, piece, gate, extra)
        return outputs.get(self.language), outputs.get(self.expert), own


def attend(module: GemmaAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attention by the implementation that the configuration names: (B, sequence, heads x head_dim)."""
    function = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention_forward)
    attended, _ = function(module, query, key, value, mask.to(query.dtype), scaling=module.scaling, dropout=0.0)
    return attended.flatten(2)


def rotate(states: Tensor, shared: AttentionInputs) -> Tensor:
    """Rotary positions, in the two-halves layout of Gemma."""
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return states * shared.cosines.type_as(states) + turned * shared.sines.type_as(states)


def attention_inputs(mask: Tensor, positions: Tensor, head_dim: int, theta: float) -> AttentionInputs:
    """From a boolean mask (B, sequence, keys) and positions (B, sequence). A row that may see nothing stays finite."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[..., None].float() * theta**-exponent  # (B, sequence, head_dim / 2)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    added = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, MASKED)[:, None]
    return AttentionInputs(added, angles.cos(), angles.sin())
