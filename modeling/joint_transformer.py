"""Transformer layers in which a language model and an action expert attend together.

The layers take and return the residual streams, so that taps need no hooks. A layer is one unit of gradient
checkpointing and of FSDP. Its two halves are built from transformers' modules in gemma_layers.py and llama_layers.py.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import AttentionInputs, AttentionModule, KeysValues, apply_rotary_embedding, attend


def add_residual(stream: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    return stream + branch if gate is None else stream + branch * gate


class HalfLayer(nn.Module):
    """Decoder layer of one of the two models, split at the attention, which both models share.

    Its norms take the stream and a condition or None, and return the normalized stream and a gate or None.
    """

    def __init__(self, attention: AttentionModule, mlp: nn.Module, attention_norm: nn.Module, mlp_norm: nn.Module):
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def project_heads(self, projection: nn.Linear, hidden: Tensor) -> Tensor:
        """Project (B, sequence, width) and split the result into heads: (B, heads, sequence, head_dim)."""
        return projection(hidden).unflatten(-1, (-1, self.attention.head_dim)).transpose(1, 2)

    def project(self, stream: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return queries, keys and values (B, heads, sequence, head_dim) and the gate of the attention branch."""
        hidden, gate = self.attention_norm(stream, condition)
        layers = (self.attention.q_proj, self.attention.k_proj, self.attention.v_proj)
        query, key, value = (self.project_heads(layer, hidden) for layer in layers)
        return query, key, value, gate

    def finish(self, stream: Tensor, attended: Tensor, gate: Tensor | None, condition: Tensor | None) -> Tensor:
        """Add the attention branch to the stream, then the MLP branch.

        Args:
            stream: (B, sequence, width).
            attended: Attention before its output projection, (B, sequence, heads x head_dim).
            gate: Gate of the attention branch, or None.
            condition: Condition of the norm before the MLP, or None.
        """
        stream = add_residual(stream, self.attention.o_proj(attended), gate)
        hidden, gate = self.mlp_norm(stream, condition)
        return add_residual(stream, self.mlp(hidden), gate)


class JointLayer(GradientCheckpointingLayer):
    """Layer in which language model and expert attend to themselves and to each other, as the mask allows.

    A call runs one half or both, depending on which stream it gets.
    """

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
        """Run the layer.

        Args:
            prefix: Stream of the language model, (B, P, width), or None.
            suffix: Stream of the expert, (B, S, expert width), or None.
            condition: Condition of the expert's norms, or None.
            shared: Mask and rotary embedding.
            cached: Keys and values of an earlier pass, which come before those of this pass.
            prefix_continues: Whether a later layer reads the prefix; if not, only its keys and values are computed.

        Returns:
            Prefix, suffix (each None if not computed), and the keys and values of this pass.
        """
        halves = [(self.language, prefix, None), (self.expert, suffix, condition)]
        running = [(half, stream, extra) for half, stream, extra in halves if stream is not None]
        queries, keys, values, gates = zip(
            *(half.project(stream, extra) for half, stream, extra in running), strict=True
        )

        query, key, value = (torch.cat(parts, dim=2) for parts in (queries, keys, values))
        query, key = apply_rotary_embedding(query, shared), apply_rotary_embedding(key, shared)
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
    """Layer whose expert half attends only to the prefix: tokens of the suffix do not attend to each other.

    The expert's keys and values are projections of the language half's. They are the same in every denoising step, so a
    pass returns them to be cached.
    """

    def __init__(self, language: HalfLayer, expert: HalfLayer):
        super().__init__()
        self.language = language
        self.expert = expert
        keys_width = language.attention.k_proj.out_features  # kv_heads x head_dim
        for name in ("k_proj", "v_proj"):
            projection = getattr(expert.attention, name)
            resized = nn.Linear(keys_width, projection.out_features, bias=projection.bias is not None)
            setattr(expert.attention, name, resized)

    def forward(
        self,
        prefix: Tensor | None,
        suffix: Tensor | None,
        condition: Tensor | None,
        shared: AttentionInputs,
        cached: KeysValues | None = None,
        prefix_continues: bool = True,
    ) -> tuple[Tensor | None, Tensor | None, KeysValues]:
        """Run the layer with the arguments of `JointLayer.forward`; `shared` has the keys of the prefix only."""
        continued = None
        if prefix is not None:
            prefix_shared = shared.select(slice(prefix.shape[1]))
            shared = shared.select(slice(prefix.shape[1], None))
            query, key, value, gate = self.language.project(prefix, None)
            key = apply_rotary_embedding(key, prefix_shared)
            cached = self.expert_keys_values(key, value)
            if prefix_continues:
                attended = attend(
                    self.language.attention,
                    apply_rotary_embedding(query, prefix_shared),
                    key,
                    value,
                    prefix_shared.mask,
                )
                continued = self.language.finish(prefix, attended, gate, None)
        if cached is None:
            raise ValueError("a cross-attention layer needs the prefix or the keys and values cached from it")
        if suffix is not None:
            hidden, gate = self.expert.attention_norm(suffix, condition)
            query = apply_rotary_embedding(self.expert.project_heads(self.expert.attention.q_proj, hidden), shared)
            attended = attend(self.expert.attention, query, *cached, shared.mask)
            suffix = self.expert.finish(suffix, attended, gate, condition)
        return continued, suffix, cached

    def expert_keys_values(self, key: Tensor, value: Tensor) -> KeysValues:
        """Project the language half's keys and values, (B, kv_heads, P, head_dim), to those of the expert."""
        attention = self.expert.attention
        merged_key, merged_value = (states.transpose(1, 2).flatten(2) for states in (key, value))
        return self.expert.project_heads(attention.k_proj, merged_key), self.expert.project_heads(
            attention.v_proj, merged_value
        )
