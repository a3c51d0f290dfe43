"""Action outputs of OpenVLA (one token per action dimension) and OpenVLA-OFT (regression head)."""

import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_openvla import OpenVLAPolicyConfig


class ActionTokenizer:
    """Tokenizer of numbers in [-1, 1].

    The bins have `action_bins` edges from -1 to 1, each edge with a token, so there is one bin less than tokens. The
    first bin has the last token of the base vocabulary, and the token ids descend from there.
    """

    def __init__(self, config: OpenVLAPolicyConfig):
        self.bins, self.end = config.action_bins, config.base_vocab_size
        self.first = self.end - self.bins  # id of the action token with the lowest id

    def encode(self, actions: Tensor) -> Tensor:
        """Return the token ids of actions, which are clamped to [-1, 1]."""
        edges_below = ((actions.float().clamp(-1, 1) + 1) / 2 * (self.bins - 1)).floor().long() + 1
        return self.end - edges_below

    def decode(self, tokens: Tensor) -> Tensor:
        """Return the bin centers of token ids. The token of 1 itself, whose bin is empty, means the last bin."""
        index = (self.end - tokens - 1).clamp(0, self.bins - 2)
        return (2 * index.float() + 1) / (self.bins - 1) - 1

    def most_likely(self, logits: Tensor) -> Tensor:
        """Return the most likely action token by logits (..., vocabulary); all other tokens are excluded."""
        return logits[..., self.first : self.end].argmax(dim=-1) + self.first


class ActionHeadBlock(nn.Module):
    """Residual MLP block of the regression head."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + F.relu(self.linear(self.norm(hidden)))


class ActionHead(nn.Module):
    """Regression head of OpenVLA-OFT: maps the concatenated hidden states of one step's action slots to its action."""

    def __init__(self, config: OpenVLAPolicyConfig, action_dim: int):
        super().__init__()
        width = config.action_head_width
        self.norm_in = nn.LayerNorm(action_dim * config.width)
        self.fc_in = nn.Linear(action_dim * config.width, width)
        self.blocks = nn.ModuleList(ActionHeadBlock(width) for _ in range(config.action_head_blocks))
        self.norm_out = nn.LayerNorm(width)
        self.fc_out = nn.Linear(width, action_dim)

    def forward(self, slots: Tensor) -> Tensor:
        """Map (B, chunk, action_dim x width) to actions (B, chunk, action_dim)."""
        hidden = F.relu(self.fc_in(self.norm_in(slots)))
        for block in self.blocks:
            hidden = block(hidden)
        return self.fc_out(self.norm_out(hidden))


def l1_error(predicted: Tensor, actions: Tensor) -> Tensor:
    """Return the mean absolute error of each step, (B, chunk), in float32."""
    return (predicted.float() - actions.float()).abs().mean(dim=-1)


def token_error(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy (B,) of each sample's tokens (B, A) under logits (B, A, vocabulary), in float32."""
    return F.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none").mean(dim=-1)
