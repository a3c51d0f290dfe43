"""SmolVLA: the lower half of SmolVLM and an action expert, trained by flow matching.

The sequence is: the image tokens of each camera, the prompt, the state (together the prefix); then, in the expert, the
noisy actions (the suffix). Images and prompt see each other; the state also itself; each action what stands before it.
Layers where the expert attends to itself and to the prefix alternate with layers where it attends to the prefix alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import AttentionInputs, attention_inputs
from .configuration_rocket import RocketConfig
from .configuration_smolvla import SmolVLAConfig
from .contract import Batch, image_tokens
from .flow_matching_policy import FlowMatchingPolicy, pad_to
from .joint_transformer import CrossLayer, JointLayer
from .llama_layers import LlamaNorm, llama_half
from .siglip_tower import SiglipTower


class SmolVLAPolicy(FlowMatchingPolicy):
    """The Policy contract for SmolVLA.

    Of SmolVLM's weights those are left out that no action depends on: the layers above the lower half, the final norm
    and the language head.
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
            (JointLayer if config.joins(index) else CrossLayer)(
                llama_half(config.language_config, index), llama_half(config.expert_config, index)
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
        """The embedded images, prompt and state, (B, P, width), and which of those tokens exist, (B, P)."""
        images, images_exist = self.embed_images(batch["images"], batch["camera_mask"])
        prompt = self.embed_tokens(batch["input_ids"]) * self.config.width**0.5
        state = pad_to(batch["state"], self.config.max_state_dim).to(self.state_projection.weight.dtype)
        prefix = torch.cat([images.type_as(prompt), prompt, self.state_projection(state)[:, None]], dim=1)
        exists = torch.cat([images_exist, F.pad(batch["attention_mask"].bool(), (0, 1), value=True)], dim=1)
        return prefix, exists

    def embed_images(self, images: Tensor, camera_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Cameras (B, V, 3, H, W) to their framed tokens (B, V x framed, width), and which exist, (B, V x framed).

        The ids around a camera's tokens stay where the camera is missing, as in training with lerobot.
        """
        count = len(images)
        patches = join_patches(self.vision_tower(images.flatten(0, 1)), self.config.pixel_shuffle)
        tokens = self.image_projection(patches) * self.config.width**0.5
        start, end = (
            self.embed_tokens(on_device(ids, images.device)).expand(len(tokens), -1, -1)
            for ids in (self.config.image_start_ids, self.config.image_end_ids)
        )
        framed = torch.cat([start.type_as(tokens), tokens, end.type_as(tokens)], dim=1)
        there = camera_mask[:, :, None].expand(-1, -1, tokens.shape[1])
        exists = F.pad(there, (start.shape[1], end.shape[1]), value=True)
        return framed.unflatten(0, (count, -1)).flatten(1, 2), exists.flatten(1)

    def embed_suffix(self, state: Tensor | None, actions: Tensor, time: Tensor) -> tuple[Tensor, None]:
        return self.embed_actions(actions, time), None

    def groups(self, prefix_length: int, device: torch.device) -> Tensor:
        """Images and prompt 0; the state and each action a group of their own."""
        position = torch.arange(prefix_length + self.chunk_size, device=device)
        return (position - (prefix_length - 2)).clamp_min(0)

    def layer_attention(self, mask: Tensor, positions: Tensor, prefix_length: int) -> list[AttentionInputs]:
        """Where the expert attends to the prefix alone, the positions of the actions start again from 0."""
        config = self.config
        joint = attention_inputs(mask, positions, config.head_dim, config.rope_theta)
        actions = torch.arange(self.chunk_size, device=positions.device).expand(len(positions), -1)
        restarted = torch.cat([positions[:, :prefix_length], actions], dim=1)
        cross = attention_inputs(mask[..., :prefix_length], restarted, config.head_dim, config.rope_theta)
        return [joint if config.joins(index) else cross for index in range(config.depth)]

    def image_tokens(self, prefix: Tensor, cameras: int) -> Tensor:
        rows, columns = self.config.image_grid
        start, tokens, end = len(self.config.image_start_ids), rows * columns, len(self.config.image_end_ids)
        return image_tokens(prefix, cameras, start + tokens + end)[:, :, start : start + tokens]


def on_device(ids: Sequence[int], device: torch.device) -> Tensor:
    """A tensor of ids, written by the device itself: a copy from the host would wait for it."""
    tensor = torch.zeros(len(ids), dtype=torch.long, device=device)
    for place, number in enumerate(ids):
        tensor[place] = number
    return tensor


def join_patches(features: Tensor, side: int) -> Tensor:
    """Squares of side x side patches to one: (N, rows x columns, C) to (N, rows x columns / side^2, C x side^2)."""
    rows = columns = round(features.shape[1] ** 0.5)
    squares = features.unflatten(1, (rows // side, side, columns // side, side)).transpose(2, 3)
    return squares.flatten(3).flatten(1, 2)
