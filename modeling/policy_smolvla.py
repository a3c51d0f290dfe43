"""SmolVLA: the lower half of SmolVLM and an action expert, trained by flow matching.

The prefix consists of the image tokens of each camera, the prompt and the state; the suffix, in the expert, of the
noisy actions. Images and prompt attend to each other, the state to them and itself, each action to everything before it
and to itself. Layers in which the expert attends to itself and to the prefix alternate with layers in which it attends
only to the prefix.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import AttentionInputs, attention_inputs
from .configuration_rocket import RocketConfig
from .configuration_smolvla import SmolVLAConfig
from .flow_matching_policy import FlowMatchingPolicy, pad_to
from .joint_transformer import CrossLayer, JointLayer
from .llama_layers import LlamaNorm, create_llama_half_layer
from .policy_interface import Batch, image_tokens
from .siglip_tower import SiglipTower


class SmolVLAPolicy(FlowMatchingPolicy):
    """SmolVLA, without the weights of SmolVLM that do not influence the actions.

    These are the layers above the lower half, the final norm and the language head.
    """

    config: SmolVLAConfig

    def __init__(self, rocket_config: RocketConfig):
        super().__init__(rocket_config)
        config = self.config
        self.vision_tower = SiglipTower(config.vision_config)
        self.image_projection = nn.Linear(config.vision_width * config.pixel_shuffle**2, config.width, bias=False)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.state_projection = nn.Linear(config.max_state_dim, config.width)
        self.layers = nn.ModuleList(
            (JointLayer if config.has_self_attention(index) else CrossLayer)(
                create_llama_half_layer(config.language_config, index),
                create_llama_half_layer(config.expert_config, index),
            )
            for index in range(config.depth)
        )
        self._no_split_modules = ["SiglipEncoderLayer", *sorted({type(layer).__name__ for layer in self.layers})]
        self.expert_norm = LlamaNorm(config.expert_width, eps=config.expert_config.rms_norm_eps)

        self.action_in = nn.Linear(config.max_action_dim, config.expert_width)
        self.action_out = nn.Linear(config.expert_width, config.max_action_dim)
        self.time_mlp_in = nn.Linear(2 * config.expert_width, config.expert_width)
        self.time_mlp_out = nn.Linear(config.expert_width, config.expert_width)

    def embed_prefix(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the embedded images, prompt and state (B, P, width) and a mask of the tokens that exist (B, P)."""
        images, images_exist = self.embed_images(batch["images"], batch["camera_mask"])
        prompt = self.embed_tokens(batch["input_ids"]) * self.config.width**0.5
        state = pad_to(batch["state"], self.config.max_state_dim).to(self.state_projection.weight.dtype)
        prefix = torch.cat([images.type_as(prompt), prompt, self.state_projection(state)[:, None]], dim=1)
        exists = torch.cat([images_exist, F.pad(batch["attention_mask"].bool(), (0, 1), value=True)], dim=1)
        return prefix, exists

    def embed_images(self, images: Tensor, camera_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embed images (B, V, 3, H, W); return tokens (B, V x n, width) and a mask (B, V x n) of those that exist.

        The n tokens of a camera are its image tokens between the configured start and end tokens. The latter exist even
        if the camera is missing, as in lerobot.
        """
        count = len(images)
        patches = join_patches(self.vision_tower(images.flatten(0, 1)), self.config.pixel_shuffle)
        tokens = self.image_projection(patches) * self.config.width**0.5
        start, end = (
            self.embed_tokens(on_device(ids, images.device)).expand(len(tokens), -1, -1)
            for ids in (self.config.image_start_ids, self.config.image_end_ids)
        )
        framed = torch.cat([start.type_as(tokens), tokens, end.type_as(tokens)], dim=1)
        present = camera_mask[:, :, None].expand(-1, -1, tokens.shape[1])
        exists = F.pad(present, (start.shape[1], end.shape[1]), value=True)
        return framed.unflatten(0, (count, -1)).flatten(1, 2), exists.flatten(1)

    def embed_suffix(self, state: Tensor | None, actions: Tensor, time: Tensor) -> tuple[Tensor, None]:
        return self.embed_actions(actions, time), None

    def token_groups(self, prefix_length: int, device: torch.device) -> Tensor:
        """Return group 0 for images and prompt; the state and each action have a group of their own."""
        position = torch.arange(prefix_length + self.chunk_size, device=device)
        return (position - (prefix_length - 2)).clamp_min(0)

    def layer_attention(self, mask: Tensor, positions: Tensor, prefix_length: int) -> list[AttentionInputs]:
        """Return the inputs of each layer. Actions have positions from 0 where they attend only to the prefix."""
        config = self.config
        joint = attention_inputs(mask, positions, config.head_dim, config.rope_theta)
        actions = torch.arange(self.chunk_size, device=positions.device).expand(len(positions), -1)
        restarted = torch.cat([positions[:, :prefix_length], actions], dim=1)
        cross = attention_inputs(mask[..., :prefix_length], restarted, config.head_dim, config.rope_theta)
        return [joint if config.has_self_attention(index) else cross for index in range(config.depth)]

    def image_tokens(self, prefix: Tensor, cameras: int) -> Tensor:
        rows, columns = self.config.image_grid
        start, tokens, end = len(self.config.image_start_ids), rows * columns, len(self.config.image_end_ids)
        return image_tokens(prefix, cameras, start + tokens + end)[:, :, start : start + tokens]


def on_device(ids: Sequence[int], device: torch.device) -> Tensor:
    """Return token ids as a tensor that is filled on the device: copying it from the host would wait for the device."""
    tensor = torch.zeros(len(ids), dtype=torch.long, device=device)
    for position, token_id in enumerate(ids):
        tensor[position] = token_id
    return tensor


def join_patches(features: Tensor, side: int) -> Tensor:
    """Join each square of side x side patches: (N, rows x columns, C) to (N, rows x columns / side^2, side^2 x C).

    This is SmolVLM's pixel shuffle. The patches form a square image.
    """
    rows = columns = round(features.shape[1] ** 0.5)
    squares = features.unflatten(1, (rows // side, side, columns // side, side)).transpose(2, 3)
    return squares.flatten(3).flatten(1, 2)
