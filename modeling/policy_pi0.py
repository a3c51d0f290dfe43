"""pi0 and pi0.5: PaliGemma and an action expert that attend together, trained by flow matching.

- The sequence is: the image tokens of each camera, the prompt (together the prefix); then, in the expert, the state
  (pi0 alone) and the noisy actions (the suffix). The prefix sees itself; the state also itself; the actions everything.
- Positions count the tokens that exist, so a missing camera or a shorter prompt changes nothing for the others.
- At inference the prefix runs once; each Euler step runs the expert over its cached keys and values.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .configuration_pi0 import Pi0Config
from .configuration_rocket import RocketConfig
from .contract import Batch, PolicyOutput, image_tokens, resolve_layer
from .flow_matching import draw_noise, draw_time, embed_time, flow_matching_loss, integrate
from .joint_transformer import AdaptiveNorm, AttentionInputs, JointLayer, KeysValues, PlainNorm, attention_inputs
from .siglip_tower import SiglipTower


class Pi0Policy(nn.Module):
    """The Policy contract for pi0 and pi0.5. Weights of the language model that no action depends on are left out."""

    def __init__(self, rocket_config: RocketConfig):
        super().__init__()
        config: Pi0Config = rocket_config.policy_config
        self.config, self.chunk_size = config, rocket_config.chunk_size
        adaptive = config.variant == "pi05"
        language, expert = config.language_config, config.expert_config
        self.vision_tower = SiglipTower(config.vision_config)
        self.image_projection = nn.Linear(config.vision_width, config.width)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(JointLayer(language, expert, index, adaptive) for index in range(config.depth))
        self.expert_norm = (AdaptiveNorm if adaptive else PlainNorm)(config.expert_width, eps=expert.rms_norm_eps)

        self.state_projection = nn.Linear(config.max_state_dim, config.expert_width) if config.reads_state else None
        self.action_in = nn.Linear(config.max_action_dim, config.expert_width)
        self.action_out = nn.Linear(config.expert_width, config.max_action_dim)
        # pi0 mixes the embedded time into the action tokens, pi0.5 makes the condition of its norms from it.
        self.time_mlp_in = nn.Linear(config.expert_width * (1 if adaptive else 2), config.expert_width)
        self.time_mlp_out = nn.Linear(config.expert_width, config.expert_width)

    def forward(self, batch: Batch, taps: Sequence[int] = (), generator: Generator | None = None) -> PolicyOutput:
        """The flow-matching loss and the tapped image tokens; without actions in the batch the taps alone."""
        wanted = {resolve_layer(layer, self.config.depth) for layer in taps}
        prefix, exists = self.embed_prefix(batch)
        if "actions" not in batch:
            return PolicyOutput({}, self.run_prefix(prefix, exists, batch, wanted)[1])

        actions = pad_to(batch["actions"], self.config.max_action_dim)
        noise = batch["noise"] if "noise" in batch else draw_noise(actions.shape, actions.device, generator)
        time = batch["time"] if "time" in batch else draw_time(len(actions), actions.device, generator)
        noisy = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
        suffix, condition = self.embed_suffix(batch.get("state"), noisy, time)

        shared = self.training_attention(exists, suffix.shape[1])
        tapped = self.tap(0, prefix, batch, wanted)
        for number, layer in enumerate(self.layers, start=1):
            continues = number < self.config.depth or number in wanted
            prefix, suffix, _ = layer(prefix, suffix, condition, shared, None, continues)
            tapped |= self.tap(number, prefix, batch, wanted)

        real = batch["actions"].shape[-1]
        velocity = self.velocity(suffix, condition)[..., :real]
        loss = flow_matching_loss(velocity, noise[..., :real], actions[..., :real], batch.get("action_is_pad"))
        return PolicyOutput({"action/flow_matching": loss}, tapped)

    def predict_action_chunk(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        """Normalised actions (B, chunk, max_action_dim), by Euler steps from noise that the generator draws."""
        prefix, exists = self.embed_prefix(batch)
        cache, _ = self.run_prefix(prefix, exists, batch, set())
        shape = (len(prefix), self.chunk_size, self.config.max_action_dim)
        noise = batch["noise"] if "noise" in batch else draw_noise(shape, prefix.device, generator)
        shared = self.denoising_attention(exists)

        def velocity(actions: Tensor, time: Tensor) -> Tensor:
            suffix, condition = self.embed_suffix(batch.get("state"), actions, time)
            for layer, cached in zip(self.layers, cache, strict=True):
                _, suffix, _ = layer(None, suffix, condition, shared, cached)
            return self.velocity(suffix, condition)

        return integrate(velocity, noise, self.config.denoising_steps)

    # The two halves of the sequence

    def embed_prefix(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The embedded images and prompt, (B, P, width), and which of those tokens exist, (B, P)."""
        images, camera_mask = batch["images"], batch["camera_mask"]
        count, cameras = images.shape[:2]
        features = self.image_projection(self.vision_tower(self.to_siglip_range(images.flatten(0, 1))))
        tokens = features.shape[1]
        prompt = self.embed_tokens(batch["input_ids"])
        prompt = prompt * torch.tensor(self.config.width**0.5, dtype=prompt.dtype)  # as Gemma scales its embeddings
        prefix = torch.cat([features.reshape(count, cameras * tokens, -1).type_as(prompt), prompt], dim=1)
        exists = torch.cat([camera_mask.repeat_interleave(tokens, dim=1), batch["attention_mask"].bool()], dim=1)
        return prefix, exists

    def to_siglip_range(self, images: Tensor) -> Tensor:
        unit = images.float() / 255 if images.dtype == torch.uint8 else images
        return (unit * 2 - 1).to(self.vision_tower.patch_embedding.weight.dtype)

    def embed_suffix(self, state: Tensor | None, actions: Tensor, time: Tensor) -> tuple[Tensor, Tensor | None]:
        """The embedded state and noisy actions, (B, S, expert_width), and pi0.5's condition (B, expert_width)."""
        dtype = self.action_in.weight.dtype
        action_tokens = self.action_in(actions.to(dtype))
        embedded_time = embed_time(time, self.config.expert_width).to(dtype)
        if self.state_projection is None or state is None:
            return action_tokens, F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(embedded_time))))
        mixed = torch.cat([action_tokens, embedded_time[:, None].expand_as(action_tokens)], dim=-1)
        action_tokens = self.time_mlp_out(F.silu(self.time_mlp_in(mixed)))
        state_token = self.state_projection(pad_to(state, self.config.max_state_dim).to(dtype))
        return torch.cat([state_token[:, None], action_tokens], dim=1), None

    def velocity(self, suffix: Tensor, condition: Tensor | None) -> Tensor:
        hidden, _ = self.expert_norm(suffix[:, -self.chunk_size :], condition)
        return self.action_out(hidden).float()

    # Running the layers over the prefix alone

    def run_prefix(
        self, prefix: Tensor, exists: Tensor, batch: Batch, wanted: set[int]
    ) -> tuple[list[KeysValues], dict[int, Tensor]]:
        mask = exists[:, None].expand(-1, prefix.shape[1], -1)
        shared = self.attention(mask, positions(exists))
        tapped, cache = self.tap(0, prefix, batch, wanted), []
        for number, layer in enumerate(self.layers, start=1):
            continues = number < self.config.depth or number in wanted
            prefix, _, keys_values = layer(prefix, None, None, shared, None, continues)
            cache.append(keys_values)
            tapped |= self.tap(number, prefix, batch, wanted)
        return cache, tapped

    def tap(self, number: int, prefix: Tensor | None, batch: Batch, wanted: set[int]) -> dict[int, Tensor]:
        if number not in wanted or prefix is None:
            return {}
        rows, columns = self.config.image_grid
        return {number: image_tokens(prefix, batch["images"].shape[1], rows * columns)}

    # Who sees whom

    def training_attention(self, prefix_exists: Tensor, suffix_length: int) -> AttentionInputs:
        """Prefix 0, state 1, actions 2: a token sees the tokens that exist and whose group is not above its own."""
        group = torch.zeros(prefix_exists.shape[1] + suffix_length, dtype=torch.long, device=prefix_exists.device)
        group[-suffix_length:] = 1
        group[-self.chunk_size :] = 2
        exists = F.pad(prefix_exists, (0, suffix_length), value=True)
        return self.attention((group <= group[:, None]) & exists[:, None], positions(exists))

    def denoising_attention(self, prefix_exists: Tensor) -> AttentionInputs:
        """The suffix's rows of the mask above; its keys follow the cached ones of the prefix."""
        suffix_length = self.chunk_size + int(self.config.reads_state)
        whole = self.training_attention(prefix_exists, suffix_length)
        rows = slice(-suffix_length, None)
        return AttentionInputs(whole.mask[:, :, rows], whole.cosines[:, :, rows], whole.sines[:, :, rows])

    def attention(self, mask: Tensor, token_positions: Tensor) -> AttentionInputs:
        theta = self.config.language_config.rope_parameters["rope_theta"]
        return attention_inputs(mask, token_positions, self.config.head_dim, theta)


def positions(exists: Tensor) -> Tensor:
    return exists.cumsum(dim=1) - 1


def pad_to(vectors: Tensor, width: int) -> Tensor:
    return F.pad(vectors, (0, width - vectors.shape[-1]))
