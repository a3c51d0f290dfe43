"""OpenVLA and OpenVLA-OFT: a Llama that reads images and a prompt and predicts actions.

- The sequence is: BOS, the image tokens of each camera, the state (only OFT), the prompt and the empty token. OFT
  appends a zero embedding (slot) for every number of the action chunk and the end token; OpenVLA appends the action
  tokens that it has generated so far.
- All tokens of OFT attend to each other, and one pass predicts the whole chunk. OpenVLA is causal.
- The prediction for a slot or token is read one position before it, as in a language model.
- Nothing is random, so the generator is not used.
- Positions count the tokens that exist, and no token attends to one that does not. A missing camera or the padding of a
  shorter prompt, which is inside the sequence, therefore changes nothing for the other tokens.
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
from .dual_vit_tower import DualVitTower
from .openvla_actions import ActionHead, ActionTokenizer, l1_error, token_error
from .policy_interface import Batch, Policy, PolicyOutput, image_tokens, mean_over_steps, resolve_layer


class GeluMlp(nn.Module):
    """Multi-layer perceptron of the given widths with exact GELUs between its linear layers."""

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, hidden: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            hidden = layer(F.gelu(hidden) if index else hidden)
        return hidden


class LlamaLayer(LlamaDecoderLayer):
    """transformers' Llama layer with a renamed cache argument.

    Gradient checkpointing in transformers removes an argument with the name `past_key_values`.
    """

    def forward(self, stream: Tensor, shared: AttentionInputs, cache: DynamicCache | None) -> Tensor:
        return super().forward(
            stream,
            attention_mask=shared.mask.type_as(stream),
            position_embeddings=(shared.cosines[:, 0].type_as(stream), shared.sines[:, 0].type_as(stream)),
            past_key_values=cache,
        )


class OpenVLABackbone(Policy):
    """Base class of both variants.

    It has no flash attention, which does not support masks of single tokens.
    """

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
        """Return the embedded tokens before the actions (B, P, width) and a mask of those that exist (B, P)."""
        text, text_exists = self.embed_prompt(batch)
        images, images_exist = self.embed_images(batch)
        state = self.embed_state(batch)
        parts = [text[:, :1], images.type_as(text), state.type_as(text), text[:, 1:]]
        state_exists = text_exists.new_ones(state.shape[:2])
        exists = [text_exists[:, :1], images_exist, state_exists, text_exists[:, 1:]]
        return torch.cat(parts, dim=1), torch.cat(exists, dim=1)

    def embed_prompt(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embed BOS, the prompt and the empty token; return a mask of the tokens that exist too.

        The empty token has a column of its own, so that the actions start at the same position in every sample. If a
        prompt already ends with the empty token, that one is masked out.
        """
        ids, exists = batch["input_ids"], batch["attention_mask"].bool()
        last = exists & (exists.flip(1).cumsum(dim=1).flip(1) == 1)
        exists = exists & ~(last & (ids == self.config.empty_token_id))
        ids = F.pad(ids, (0, 1), value=self.config.empty_token_id)
        return self.embed_tokens(ids), F.pad(exists, (0, 1), value=True)

    def embed_images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embed the images camera by camera: (B, cameras x tokens, width), and a mask of the tokens that exist."""
        images, camera_mask = batch["images"], batch["camera_mask"]
        features = self.projector(self.vision_tower(images.flatten(0, 1)))
        exists = camera_mask.bool().repeat_interleave(features.shape[1], dim=1)
        return features.unflatten(0, images.shape[:2]).flatten(1, 2), exists

    def embed_state(self, batch: Batch) -> Tensor:
        """Embed the state: (B, state tokens, width), with no token unless the variant reads the state."""
        return self.embed_tokens.weight.new_zeros(len(batch["images"]), 0, self.config.width)

    # Running the layers

    def run(
        self,
        stream: Tensor,
        exists: Tensor,
        cameras: int,
        tap_layers: Collection[int] = (),
        cache: DynamicCache | None = None,
        blocks: int | None = None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the layers; return the resulting stream and the tapped image tokens.

        Args:
            stream: Embedded tokens, (B, tokens, width).
            exists: Mask of the cached tokens and of those of the stream, (B, keys).
            cameras: Number of cameras.
            tap_layers: Resolved numbers of the layers to tap.
            cache: Keys and values of the tokens before those of the stream.
            blocks: Number of blocks to run (default: all).
        """
        shared = self.build_attention(exists, stream.shape[1])
        tapped = self.tap(0, stream, cameras, tap_layers)
        for number, layer in enumerate(self.layers[:blocks], start=1):
            stream = layer(stream, shared, cache)
            tapped |= self.tap(number, stream, cameras, tap_layers)
        return stream, tapped

    def tap(self, number: int, stream: Tensor, cameras: int, tap_layers: Collection[int]) -> dict[int, Tensor]:
        """Return the image tokens of a layer by its number, or nothing if it is not tapped."""
        if number not in tap_layers:
            return {}
        rows, columns = self.config.image_grid
        start = 2 if self.config.reference_compat_token_shift else 1  # position 0 is BOS
        return {number: image_tokens(stream, cameras, rows * columns, start)}

    def build_attention(self, exists: Tensor, queries: int) -> AttentionInputs:
        """Return attention mask and positions of the last `queries` tokens, given the mask `exists` (B, keys)."""
        mask = exists[:, None].expand(-1, queries, -1)
        if self.causal:
            index = torch.arange(exists.shape[1], device=exists.device)
            mask = mask & (index <= index[-queries:, None])
        positions = exists.cumsum(dim=1)[:, -queries:] - 1
        head_dim = self.config.width // self.config.heads
        return attention_inputs(mask, positions, head_dim, self.config.rope_theta)

    def resolve_taps(self, taps: Sequence[int]) -> set[int]:
        return {resolve_layer(layer, self.config.depth) for layer in taps}

    def run_to_deepest_tap(self, sequence: Tensor, exists: Tensor, batch: Batch, tap_layers: set[int]) -> PolicyOutput:
        """Return the taps without losses, and do not run the blocks above the deepest tap."""
        blocks = max(tap_layers, default=0)
        return PolicyOutput({}, self.run(sequence, exists, batch["images"].shape[1], tap_layers, blocks=blocks)[1])


class OpenVLAOFTPolicy(OpenVLABackbone):
    """OpenVLA-OFT. It predicts no tokens, so it has no language-model head."""

    causal = False

    def __init__(self, rocket_config: RocketConfig):
        super().__init__(rocket_config)
        width = self.config.width
        self.state_projector = GeluMlp(rocket_config.state_dim, width, width)
        self.action_head = ActionHead(self.config, self.action_dim)

    def forward(self, batch: Batch, taps: Sequence[int] = (), generator: Generator | None = None) -> PolicyOutput:
        tap_layers = self.resolve_taps(taps)
        sequence, exists = self.embed_sequence(batch)
        if "actions" not in batch:
            return self.run_to_deepest_tap(sequence, exists, batch, tap_layers)
        stream, tapped = self.run(sequence, exists, batch["images"].shape[1], tap_layers)
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
        """Embed the prefix, the action slots and the end token; return a mask of the tokens that exist too."""
        prefix, exists = self.embed_prefix(batch)
        slots = self.chunk_size * self.action_dim
        end = torch.full((len(prefix), 1), self.config.end_token_id, device=prefix.device)
        sequence = torch.cat([F.pad(prefix, (0, 0, 0, slots)), self.embed_tokens(end)], dim=1)
        return sequence, F.pad(exists, (0, slots + 1), value=True)

    def read_actions(self, stream: Tensor) -> Tensor:
        """Return the actions (B, chunk, action_dim) in float32; the end token and the last slot predict nothing."""
        slots = self.chunk_size * self.action_dim
        hidden = self.norm(stream[:, -slots - 2 : -2])
        return self.action_head(hidden.unflatten(1, (self.chunk_size, self.action_dim)).flatten(2)).float()


class OpenVLATokenPolicy(OpenVLABackbone):
    """OpenVLA, which generates a single action (a chunk of one) token by token.

    The loss is over the whole vocabulary. Generation chooses the most likely action token, because decoding any other
    token would move the robot to the end of its range.
    """

    causal = True

    def __init__(self, rocket_config: RocketConfig):
        super().__init__(rocket_config)
        self.lm_head = nn.Linear(self.config.width, self.config.vocab_size, bias=False)
        self.tokens = ActionTokenizer(self.config)

    def forward(self, batch: Batch, taps: Sequence[int] = (), generator: Generator | None = None) -> PolicyOutput:
        tap_layers = self.resolve_taps(taps)
        prefix, exists = self.embed_prefix(batch)
        if "actions" not in batch:
            return self.run_to_deepest_tap(prefix, exists, batch, tap_layers)
        tokens = self.tokens.encode(batch["actions"][:, 0])  # (B, action_dim)
        previous = self.embed_tokens(tokens[:, :-1])
        exists = F.pad(exists, (0, previous.shape[1]), value=True)
        stream, tapped = self.run(torch.cat([prefix, previous], dim=1), exists, batch["images"].shape[1], tap_layers)
        error = token_error(self.lm_head(self.norm(stream[:, -self.action_dim :])), tokens)
        loss = mean_over_steps(error[:, None], batch.get("action_is_pad"))
        return PolicyOutput({self.config.action_loss: loss}, tapped)

    def predict_action_chunk(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        stream, exists = self.embed_prefix(batch)
        cache, generated, largest_logits = DynamicCache(), [], []
        for _ in range(self.action_dim):
            output, _ = self.run(stream, exists, batch["images"].shape[1], cache=cache)
            logits = self.lm_head(self.norm(output[:, -1:]))
            generated.append(self.tokens.most_likely(logits))
            largest_logits.append(logits.amax(dim=-1))
            stream = self.embed_tokens(generated[-1])
            exists = F.pad(exists, (0, 1), value=True)
        actions = self.tokens.decode(torch.cat(generated, dim=1))
        # Logits that are NaN have a most likely token too, whose action would look plausible.
        return torch.where(torch.cat(largest_logits, dim=1).isfinite(), actions, torch.nan)[:, None]


def create_openvla_policy(rocket_config: RocketConfig) -> OpenVLABackbone:
    variants = {"oft": OpenVLAOFTPolicy, "openvla": OpenVLATokenPolicy}
    return variants[rocket_config.policy_config.variant](rocket_config)
