"""OpenVLA and OpenVLA-OFT: a Llama that reads images and a prompt and speaks of actions.

- The sequence is: BOS, the image tokens of each camera, the state (OFT alone), the prompt, the empty token; then, for
  OFT, a zeroed slot for every number of the chunk and the end token, for OpenVLA the action tokens said so far.
- OFT's tokens all see each other and its chunk is read off a single pass; OpenVLA's see what stands before them.
- What a slot or token becomes is read one position before it, as a language model predicts.
- Nothing is random, so the generator is not used.
- Positions count the tokens that exist, and nothing sees one that does not; so a missing camera or the padding of a
  shorter prompt, which lies inside the sequence, changes nothing for the others.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from .attention import AttentionInputs, attention_inputs
from .configuration_openvla import OpenVLAPolicyConfig
from .configuration_rocket import RocketConfig
from .contract import Batch, Policy, PolicyOutput, image_tokens, mean_over_steps, resolve_layer
from .dual_vit_tower import DualVitTower
from .openvla_actions import ActionHead, ActionTokens, l1_error, token_error


class GeluMlp(nn.Module):
    """Linears with exact GELUs between them, through the widths given."""

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, hidden: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            hidden = layer(F.gelu(hidden) if index else hidden)
        return hidden


class LlamaLayer(LlamaDecoderLayer):
    """transformers' layer with a cache that it keeps: under its own name gradient checkpointing would take it away."""

    def forward(self, stream: Tensor, shared: AttentionInputs, cache: DynamicCache | None) -> Tensor:
        return super().forward(
            stream,
            attention_mask=shared.mask.type_as(stream),
            position_embeddings=(shared.cosines[:, 0].type_as(stream), shared.sines[:, 0].type_as(stream)),
            past_key_values=cache,
        )


class OpenVLABackbone(Policy):
    """What the two variants share. The attention is masked token by token, which flash attention cannot do."""

    attention_implementations = ("eager", "sdpa")
    _no_split_modules = ["LlamaLayer", "VitBlock"]
    causal: bool

    def __init__(self, rocket_config: RocketConfig):
        super().__init__()
        config: OpenVLAPolicyConfig = rocket_config.policy_config
        self.config = config
        self.chunk_size, self.action_dim = rocket_config.chunk_size, rocket_config.action_dim
        self.vision_tower = DualVitTower(config)
        features = config.dino_width + config.siglip_width
        self.projector = GeluMlp(features, 4 * features, config.width, config.width)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(LlamaLayer(config.language_config, index) for index in range(config.depth))
        self.norm = LlamaRMSNorm(config.width, eps=config.rms_norm_eps)

    # The sequence up to the actions

    def embed_prefix(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Everything before the actions, embedded, (B, P, width), and which of these tokens exist, (B, P)."""
        text, text_exists = self.embed_prompt(batch)
        images, images_exist = self.embed_images(batch)
        state = self.embed_state(batch)
        parts = [text[:, :1], images.type_as(text), state.type_as(text), text[:, 1:]]
        state_exists = text_exists.new_ones(state.shape[:2])
        exists = [text_exists[:, :1], images_exist, state_exists, text_exists[:, 1:]]
        return torch.cat(parts, dim=1), torch.cat(exists, dim=1)

    def embed_prompt(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """BOS, the prompt and the empty token. The last has a column of its own, so that the actions follow at the same
        place in every sample; where the prompt already ends in it, that one is passed over."""
        ids, exists = batch["input_ids"], batch["attention_mask"].bool()
        last = exists & (exists.flip(1).cumsum(dim=1).flip(1) == 1)
        exists = exists & ~(last & (ids == self.config.empty_token_id))
        ids = F.pad(ids, (0, 1), value=self.config.empty_token_id)
        return self.embed_tokens(ids), F.pad(exists, (0, 1), value=True)

    def embed_images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, cameras x tokens, width), camera by camera."""
        images, camera_mask = batch["images"], batch["camera_mask"]
        features = self.projector(self.vision_tower(images.flatten(0, 1)))
        exists = camera_mask.bool().repeat_interleave(features.shape[1], dim=1)
        return features.unflatten(0, images.shape[:2]).flatten(1, 2), exists

    def embed_state(self, batch: Batch) -> Tensor:
        """(B, state tokens, width): none, unless a variant reads the state."""
        return self.embed_tokens.weight.new_zeros(len(batch["images"]), 0, self.config.width)

    # Running the layers

    def run(
        self,
        stream: Tensor,
        exists: Tensor,
        cameras: int,
        wanted: Collection[int] = (),
        cache: DynamicCache | None = None,
        deepest: int | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The stream after `deepest` blocks, or after all, and the tapped image tokens. `exists` (B, keys) is about the
        cached tokens, then those of the stream."""
        shared = self.attention(exists, stream.shape[1])
        tapped = self.tap(0, stream, cameras, wanted)
        for number, layer in enumerate(self.layers[:deepest], start=1):
            stream = layer(stream, shared, cache)
            tapped |= self.tap(number, stream, cameras, wanted)
        return stream, tapped

    def tap(self, number: int, stream: Tensor, cameras: int, wanted: Collection[int]) -> dict[int, Tensor]:
        if number not in wanted:
            return {}
        rows, columns = self.config.image_grid
        start = 2 if self.config.reference_compat_token_shift else 1
        return {number: image_tokens(stream, cameras, rows * columns, start)}

    def attention(self, exists: Tensor, queries: int) -> AttentionInputs:
        """For the last `queries` tokens of those that `exists` (B, keys) is about."""
        mask = exists[:, None].expand(-1, queries, -1)
        if self.causal:
            place = torch.arange(exists.shape[1], device=exists.device)
            mask = mask & (place <= place[-queries:, None])
        positions = exists.cumsum(dim=1)[:, -queries:] - 1
        head_dim = self.config.width // self.config.heads
        return attention_inputs(mask, positions, head_dim, self.config.rope_theta)

    def wanted(self, taps: Sequence[int]) -> set[int]:
        return {resolve_layer(layer, self.config.depth) for layer in taps}

    def taps_alone(self, sequence: Tensor, exists: Tensor, batch: Batch, wanted: set[int]) -> PolicyOutput:
        """Runs no further than the deepest tap."""
        deepest = max(wanted, default=0)
        return PolicyOutput({}, self.run(sequence, exists, batch["images"].shape[1], wanted, deepest=deepest)[1])


class OpenVLAOFTPolicy(OpenVLABackbone):
    """The Policy contract for OpenVLA-OFT. It predicts no words, so it has no language-model head."""

    causal = False

    def __init__(self, rocket_config: RocketConfig):
        super().__init__(rocket_config)
        width = self.config.width
        self.state_projector = GeluMlp(rocket_config.state_dim, width, width)
        self.action_head = ActionHead(self.config, self.action_dim)

    def forward(self, batch: Batch, taps: Sequence[int] = (), generator: Generator | None = None) -> PolicyOutput:
        wanted = self.wanted(taps)
        sequence, exists = self.embed_sequence(batch)
        if "actions" not in batch:
            return self.taps_alone(sequence, exists, batch, wanted)
        stream, tapped = self.run(sequence, exists, batch["images"].shape[1], wanted)
        error = l1_error(self.read_actions(stream), batch["actions"])
        return PolicyOutput({self.config.action_loss: mean_over_steps(error, batch.get("action_is_pad"))}, tapped)

    def predict_action_chunk(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        sequence, exists = self.embed_sequence(batch)
        stream, _ = self.run(sequence, exists, batch["images"].shape[1])
        return self.read_actions(stream)

    def embed_state(self, batch: Batch) -> Tensor:
        state = batch["state"].to(self.embed_tokens.weight.dtype)
        return self.state_projector(state)[:, None]

    def embed_sequence(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The prefix, the action slots and the end token."""
        prefix, exists = self.embed_prefix(batch)
        slots = self.chunk_size * self.action_dim
        end = torch.full((len(prefix), 1), self.config.end_token_id, device=prefix.device)
        sequence = torch.cat([F.pad(prefix, (0, 0, 0, slots)), self.embed_tokens(end)], dim=1)
        return sequence, F.pad(exists, (0, slots + 1), value=True)

    def read_actions(self, stream: Tensor) -> Tensor:
        """(B, chunk, action_dim) in float32. The end token and the last slot predict nothing."""
        slots = self.chunk_size * self.action_dim
        hidden = self.norm(stream[:, -slots - 2 : -2])
        return self.action_head(hidden.unflatten(1, (self.chunk_size, self.action_dim)).flatten(2)).float()


class OpenVLATokenPolicy(OpenVLABackbone):
    """The Policy contract for OpenVLA: one action, token by token. The loss is over the whole vocabulary; what is said
    is the most likely action token, since any other would move the robot to the end of its range."""

    causal = True

    def __init__(self, rocket_config: RocketConfig):
        super().__init__(rocket_config)
        self.lm_head = nn.Linear(self.config.width, self.config.vocab_size, bias=False)
        self.tokens = ActionTokens(self.config)

    def forward(self, batch: Batch, taps: Sequence[int] = (), generator: Generator | None = None) -> PolicyOutput:
        wanted = self.wanted(taps)
        prefix, exists = self.embed_prefix(batch)
        if "actions" not in batch:
            return self.taps_alone(prefix, exists, batch, wanted)
        tokens = self.tokens.encode(batch["actions"][:, 0])  # (B, action_dim)
        said = self.embed_tokens(tokens[:, :-1])
        exists = F.pad(exists, (0, said.shape[1]), value=True)
        stream, tapped = self.run(torch.cat([prefix, said], dim=1), exists, batch["images"].shape[1], wanted)
        error = token_error(self.lm_head(self.norm(stream[:, -self.action_dim :])), tokens)
        loss = mean_over_steps(error[:, None], batch.get("action_is_pad"))
        return PolicyOutput({self.config.action_loss: loss}, tapped)

    def predict_action_chunk(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        stream, exists = self.embed_prefix(batch)
        cache, said = DynamicCache(), []
        for _ in range(self.action_dim):
            after, _ = self.run(stream, exists, batch["images"].shape[1], cache=cache)
            said.append(self.tokens.most_likely(self.lm_head(self.norm(after[:, -1:]))))
            stream = self.embed_tokens(said[-1])
            exists = F.pad(exists, (0, 1), value=True)
        return self.tokens.decode(torch.cat(said, dim=1))[:, None]


def make_openvla_policy(rocket_config: RocketConfig) -> OpenVLABackbone:
    variants = {"oft": OpenVLAOFTPolicy, "openvla": OpenVLATokenPolicy}
    return variants[rocket_config.policy_config.variant](rocket_config)
