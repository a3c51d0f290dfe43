"""A language model and an action expert that attend together, one module per depth.

The residual stream of the language model is passed from module to module in the open, so that taps need no hooks; a
layer is one unit of gradient checkpointing and of FSDP. Each half is made of transformers' modules: see gemma_layers.py
and llama_layers.py.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import Attention, AttentionInputs, KeysValues, attend, rotate


def add_residual(stream: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    return stream + branch if gate is None else stream + branch * gate


class HalfLayer(nn.Module):
    """One decoder layer of one of the two models, split where the attention joins them.

    Its norms take the stream and a condition, or None, and return the normalised stream and a gate, or None.
    """

    def __init__(self, attention: Attention, mlp: nn.Module, attention_norm: nn.Module, mlp_norm: nn.Module):
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def heads(self, projection: nn.Linear, hidden: Tensor) -> Tensor:
        """(B, sequence, width) to (B, heads, sequence, head_dim)."""
        return projection(hidden).unflatten(-1, (-1, self.attention.head_dim)).transpose(1, 2)

    def project(self, stream: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys, values (B, heads, sequence, head_dim) and the gate of the attention branch."""
        hidden, gate = self.attention_norm(stream, condition)
        layers = (self.attention.q_proj, self.attention.k_proj, self.attention.v_proj)
        query, key, value = (self.heads(layer, hidden) for layer in layers)
        return query, key, value, gate

    def finish(self, stream: Tensor, attended: Tensor, gate: Tensor | None, condition: Tensor | None) -> Tensor:
        """Adds the attention branch, (B, sequence, heads x head_dim) before its output projection, then the MLP."""
        stream = add_residual(stream, self.attention.o_proj(attended), gate)
        hidden, gate = self.mlp_norm(stream, condition)
        return add_residual(stream, self.mlp(hidden), gate)


class JointLayer(GradientCheckpointingLayer):
    """Runs the language half, the expert half or both; both attend to each other as the mask allows."""

    def __init__(self, language: HalfLayer, expert: HalfLayer):
        super().__init__()
        self.language = language
        self.expert = expert

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


class CrossLayer(GradientCheckpointingLayer):
    """A joint layer whose expert half reads the prefix alone: no token of the suffix sees another one.

    The expert's keys and values are projections of the language half's, which are the same in every denoising step;
    so they are what the pass hands back to be cached.
    """

    def __init__(self, language: HalfLayer, expert: HalfLayer):
        super().__init__()
        self.language = language
        self.expert = expert
        keys_width = language.attention.k_proj.out_features  # kv_heads x head_dim
        for name in ("k_proj", "v_proj"):
            projection = getattr(expert.attention, name)
            reads_keys = nn.Linear(keys_width, projection.out_features, bias=projection.bias is not None)
            setattr(expert.attention, name, reads_keys)

    def forward(
        self,
        prefix: Tensor | None,
        suffix: Tensor | None,
        condition: Tensor | None,
        shared: AttentionInputs,
        cached: KeysValues | None = None,
        prefix_continues: bool = True,
    ) -> tuple[Tensor | None, Tensor | None, KeysValues]:
        """As in a joint layer, with `shared` for the keys of the prefix alone."""
        continued = None
        if prefix is not None:
            rows = shared.part(slice(prefix.shape[1]))
            shared = shared.part(slice(prefix.shape[1], None))
            query, key, value, gate = self.language.project(prefix, None)
            key = rotate(key, rows)
            cached = self.read(key, value)
            if prefix_continues:
                attended = attend(self.language.attention, rotate(query, rows), key, value, rows.mask)
                continued = self.language.finish(prefix, attended, gate, None)
        if cached is None:
            raise ValueError("a cross-attention layer needs the prefix or the keys and values cached from it")
        if suffix is not None:
            hidden, gate = self.expert.attention_norm(suffix, condition)
            query = rotate(self.expert.heads(self.expert.attention.q_proj, hidden), shared)
            attended = attend(self.expert.attention, query, *cached, shared.mask)
            suffix = self.expert.finish(suffix, attended, gate, condition)
        return continued, suffix, cached

    def read(self, key: Tensor, value: Tensor) -> KeysValues:
        """The language half's keys and values, (B, kv_heads, P, head_dim), projected again by the expert."""
        attention = self.expert.attention
        merged_key, merged_value = (states.transpose(1, 2).flatten(2) for states in (key, value))
        return self.expert.heads(attention.k_proj, merged_key), self.expert.heads(attention.v_proj, merged_value)
