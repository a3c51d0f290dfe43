"""Base class of pi0, pi0.5 and SmolVLA: a language model and an action expert that attend together, with flow matching.

- The sequence is a prefix, which the language model reads, and a suffix with the noisy actions, which the expert reads.
- Each token has a group number, ascending along the sequence, and attends to the tokens whose group is not above its
  own.
- Positions count the tokens that exist, so a missing camera or a shorter prompt changes nothing for the other tokens.
- At inference the prefix runs once; each Euler step runs the expert over the cached keys and values of the prefix.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .attention import AttentionInputs, KeysValues
from .configuration_rocket import RocketConfig
from .flow_matching import draw_noise, draw_time, embed_time, flow_matching_loss, integrate
from .policy_interface import Batch, Policy, PolicyOutput, resolve_layer


class FlowMatchingPolicy(Policy):
    """Policy with flow matching. A subclass creates the modules declared here and defines its sequence."""

    attention_implementations = ("eager", "sdpa")

    layers: nn.ModuleList  # of layers with the signature of JointLayer
    expert_norm: nn.Module
    action_in: nn.Linear
    action_out: nn.Linear
    time_mlp_in: nn.Linear
    time_mlp_out: nn.Linear

    def __init__(self, rocket_config: RocketConfig):
        super().__init__()
        self.config, self.chunk_size = rocket_config.policy_config, rocket_config.chunk_size

    # Methods that a backbone defines

    @abstractmethod
    def embed_prefix(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the embedded prefix (B, P, width) and a mask of the tokens that exist (B, P)."""

    @abstractmethod
    def embed_suffix(self, state: Tensor | None, actions: Tensor, time: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the embedded suffix (B, S, expert_width), actions last, and the norms' condition (B, expert_width)."""

    @abstractmethod
    def token_groups(self, prefix_length: int, device: torch.device) -> Tensor:
        """Return the attention group of each token of prefix and suffix, (P + S,)."""

    @abstractmethod
    def layer_attention(self, mask: Tensor, positions: Tensor, prefix_length: int) -> list[AttentionInputs]:
        """Return the inputs of each layer from the boolean mask (B, P + S, P + S) and the positions (B, P + S)."""

    @abstractmethod
    def image_tokens(self, prefix: Tensor, cameras: int) -> Tensor:
        """Return the image tokens of a prefix: (B, cameras, tokens of one camera, width)."""

    # Policy interface

    def forward(self, batch: Batch, taps: Sequence[int] = (), generator: Generator | None = None) -> PolicyOutput:
        tap_layers = {resolve_layer(layer, self.config.depth) for layer in taps}
        prefix, exists = self.embed_prefix(batch)
        shared = self.build_attention(exists)
        if "actions" not in batch:
            return PolicyOutput({}, self.run_prefix(prefix, shared, batch, tap_layers)[1])

        actions = pad_to(batch["actions"], self.config.max_action_dim)
        noise = batch["noise"] if "noise" in batch else draw_noise(actions.shape, actions.device, generator)
        time = batch["time"] if "time" in batch else draw_time(len(actions), actions.device, generator)
        noisy = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
        suffix, condition = self.embed_suffix(batch.get("state"), noisy, time)

        tapped = self.tap(0, prefix, batch, tap_layers)
        for number, (layer, inputs) in enumerate(zip(self.layers, shared, strict=True), start=1):
            continues = number < self.config.depth or number in tap_layers
            prefix, suffix, _ = layer(prefix, suffix, condition, inputs, None, continues)
            tapped |= self.tap(number, prefix, batch, tap_layers)

        action_dim = batch["actions"].shape[-1]  # the loss excludes the dimensions that pad_to added
        velocity, noise, actions = (
            values[..., :action_dim] for values in (self.predict_velocity(suffix, condition), noise, actions)
        )
        loss = flow_matching_loss(velocity, noise, actions, batch.get("action_is_pad"), batch.get("action_mask"))
        return PolicyOutput({"action/flow_matching": loss}, tapped)

    def predict_action_chunk(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        """Return normalized actions (B, chunk, max_action_dim), starting from the batch's or the generator's noise."""
        prefix, exists = self.embed_prefix(batch)
        shared = self.build_attention(exists)
        cache, _ = self.run_prefix(prefix, shared, batch, set())
        shape = (len(prefix), self.chunk_size, self.config.max_action_dim)
        noise = batch["noise"] if "noise" in batch else draw_noise(shape, prefix.device, generator)
        steps = [inputs.select(slice(prefix.shape[1], None)) for inputs in shared]

        def velocity(actions: Tensor, time: Tensor) -> Tensor:
            suffix, condition = self.embed_suffix(batch.get("state"), actions, time)
            for layer, inputs, cached in zip(self.layers, steps, cache, strict=True):
                _, suffix, _ = layer(None, suffix, condition, inputs, cached)
            return self.predict_velocity(suffix, condition)

        return integrate(velocity, noise, self.config.denoising_steps)

    # Parts of the forward pass

    def run_prefix(
        self, prefix: Tensor, shared: list[AttentionInputs], batch: Batch, tap_layers: set[int]
    ) -> tuple[list[KeysValues], dict[int, Tensor]]:
        """Run the prefix without a suffix; return the keys and values of each layer and the tapped image tokens."""
        length = prefix.shape[1]
        tapped, cache = self.tap(0, prefix, batch, tap_layers), []
        for number, (layer, inputs) in enumerate(zip(self.layers, shared, strict=True), start=1):
            continues = number < self.config.depth or number in tap_layers
            prefix, _, keys_values = layer(prefix, None, None, inputs.select(slice(length), length), None, continues)
            cache.append(keys_values)
            tapped |= self.tap(number, prefix, batch, tap_layers)
        return cache, tapped

    def tap(self, number: int, prefix: Tensor | None, batch: Batch, tap_layers: set[int]) -> dict[int, Tensor]:
        if number not in tap_layers or prefix is None:
            return {}
        return {number: self.image_tokens(prefix, batch["images"].shape[1])}

    def build_attention(self, prefix_exists: Tensor) -> list[AttentionInputs]:
        """Return the attention mask and positions of the whole sequence for each layer."""
        prefix_length = prefix_exists.shape[1]
        group = self.token_groups(prefix_length, prefix_exists.device)
        exists = F.pad(prefix_exists, (0, len(group) - prefix_length), value=True)
        mask = (group <= group[:, None]) & exists[:, None]
        return self.layer_attention(mask, exists.cumsum(dim=1) - 1, prefix_length)

    def embed_actions(self, actions: Tensor, time: Tensor) -> Tensor:
        """Embed noisy actions (B, chunk, max_action_dim), each mixed with the flow time: (B, chunk, expert_width)."""
        dtype = self.action_in.weight.dtype
        tokens = self.action_in(actions.to(dtype))
        embedded_time = embed_time(time, tokens.shape[-1]).to(dtype)
        mixed = torch.cat([tokens, embedded_time[:, None].expand_as(tokens)], dim=-1)
        return self.time_mlp_out(F.silu(self.time_mlp_in(mixed)))

    def predict_velocity(self, suffix: Tensor, condition: Tensor | None) -> Tensor:
        """Return the velocity of the actions, (B, chunk, max_action_dim), from the expert's output."""
        hidden, _ = self.expert_norm(suffix[:, -self.chunk_size :], condition)
        return self.action_out(hidden).float()


def pad_to(vectors: Tensor, width: int) -> Tensor:
    """Pad vectors (..., n) with zeros to (..., width)."""
    return F.pad(vectors, (0, width - vectors.shape[-1]))
