"""pi0 and pi0.5: PaliGemma and an action expert that attend together, trained by flow matching.

The prefix consists of the image tokens of each camera and the prompt; the suffix, in the expert, of the state (only in
pi0) and the noisy actions. The prefix attends to itself, the state to the prefix and itself, the actions to everything.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import AttentionInputs, attention_inputs
from .configuration_pi0 import Pi0Config
from .configuration_rocket import RocketConfig
from .flow_matching import embed_time
from .flow_matching_policy import FlowMatchingPolicy, pad_to
from .gemma_layers import AdaptiveNorm, GemmaNorm, create_gemma_half_layer
from .joint_transformer import JointLayer
from .policy_interface import Batch, image_tokens
from .siglip_tower import SiglipTower


class Pi0Policy(FlowMatchingPolicy):
    """pi0 or pi0.5, without the weights of the language model that do not influence the actions."""

    config: Pi0Config
    _no_split_modules = ["JointLayer", "SiglipEncoderLayer"]

    def __init__(self, rocket_config: RocketConfig):
        super().__init__(rocket_config)
        config = self.config
        adaptive = config.variant == "pi05"
        language, expert = config.language_config, config.expert_config
        self.vision_tower = SiglipTower(config.vision_config)
        self.image_projection = nn.Linear(config.vision_width, config.width)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(
            JointLayer(
                create_gemma_half_layer(language, index, adaptive=False),
                create_gemma_half_layer(expert, index, adaptive),
            )
            for index in range(config.depth)
        )
        self.expert_norm = (AdaptiveNorm if adaptive else GemmaNorm)(config.expert_width, eps=expert.rms_norm_eps)

        self.state_projection = nn.Linear(config.max_state_dim, config.expert_width) if config.reads_state else None
        self.action_in = nn.Linear(config.max_action_dim, config.expert_width)
        self.action_out = nn.Linear(config.expert_width, config.max_action_dim)
        # pi0 mixes the embedded time into the action tokens; pi0.5 computes the condition of its norms from it.
        self.time_mlp_in = nn.Linear(config.expert_width * (1 if adaptive else 2), config.expert_width)
        self.time_mlp_out = nn.Linear(config.expert_width, config.expert_width)

    def embed_prefix(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the embedded images and prompt (B, P, width) and a mask of the tokens that exist (B, P)."""
        images, camera_mask = batch["images"], batch["camera_mask"]
        count, cameras = images.shape[:2]
        features = self.image_projection(self.vision_tower(images.flatten(0, 1)))
        tokens = features.shape[1]
        prompt = self.embed_tokens(batch["input_ids"])
        prompt = prompt * torch.tensor(self.config.width**0.5, dtype=prompt.dtype)  # Gemma scales its embeddings
        prefix = torch.cat([features.reshape(count, cameras * tokens, -1).type_as(prompt), prompt], dim=1)
        exists = torch.cat([camera_mask.repeat_interleave(tokens, dim=1), batch["attention_mask"].bool()], dim=1)
        return prefix, exists

    def embed_suffix(self, state: Tensor | None, actions: Tensor, time: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the embedded state and noisy actions (B, S, expert_width) and pi0.5's condition (B, expert_width)."""
        dtype = self.action_in.weight.dtype
        if self.state_projection is None or state is None:
            embedded_time = embed_time(time, self.config.expert_width).to(dtype)
            condition = F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(embedded_time))))
            return self.action_in(actions.to(dtype)), condition
        state_token = self.state_projection(pad_to(state, self.config.max_state_dim).to(dtype))
        return torch.cat([state_token[:, None], self.embed_actions(actions, time)], dim=1), None

    def token_groups(self, prefix_length: int, device: torch.device) -> Tensor:
        """Return group 0 for the prefix, 1 for the state and 2 for the actions."""
        length = prefix_length + int(self.config.reads_state) + self.chunk_size
        group = torch.zeros(length, dtype=torch.long, device=device)
        group[prefix_length:] = 1
        group[-self.chunk_size :] = 2
        return group

    def layer_attention(self, mask: Tensor, positions: Tensor, prefix_length: int) -> list[AttentionInputs]:
        theta = self.config.language_config.rope_parameters["rope_theta"]
        return [attention_inputs(mask, positions, self.config.head_dim, theta)] * self.config.depth

    def image_tokens(self, prefix: Tensor, cameras: int) -> Tensor:
        rows, columns = self.config.image_grid
        return image_tokens(prefix, cameras, rows * columns)
