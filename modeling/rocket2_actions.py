"""Action heads of ROCKET-2 and the embedding of its previous action. An action is one choice from each factor."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .configuration_rocket2 import Rocket2Config
from .rocket2_minecraft import BUTTONS, CAMERA_REST, decode_action, reset_unused_camera

# Buttons of the previous action that are embedded: all but "drop".
EMBEDDED_BUTTONS = tuple(button for button in BUTTONS if button != "drop")


def module_dict(modules: dict[str, nn.Module]) -> nn.ModuleDict:
    """Return a ModuleDict whose keys have a prefix, so that a factor may be named like a method ("forward")."""
    return nn.ModuleDict({f"act_{name}": module for name, module in modules.items()})


class ActionChoice(nn.Linear):
    """Linear layer that scores the choices of one factor. Its initial scores are nearly equal."""

    GAIN = 0.01


class ActionHeads(nn.Module):
    """One score layer for each action factor."""

    def __init__(self, config: Rocket2Config):
        super().__init__()
        self.minecraft = config.action_space == "minecraft"
        self.names = list(config.factors)
        self.factors = module_dict({name: ActionChoice(config.width, n) for name, n in config.factors.items()})

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """Map hidden states (..., D) to the scores (..., choices) of each factor."""
        factors = zip(self.names, self.factors.values(), strict=True)
        return {name: factor(hidden).float() for name, factor in factors}

    def losses(self, logits: dict[str, Tensor], actions: Tensor, exists: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy of each factor, summed over steps and averaged over the batch.

        Minecraft's camera counts only on steps in which it moves: on others, the button combination lacks "camera", so
        that the game ignores the camera index.

        Args:
            logits: Scores (B, T, choices) by factor.
            actions: Demonstrated choices, (B, T, factors).
            exists: (B, T) bool, False on padding.
        """
        losses = {}
        for (name, scores), chosen in zip(logits.items(), actions.unbind(-1), strict=True):
            moved = chosen != CAMERA_REST if self.minecraft and name == "camera" else torch.ones_like(exists)
            entropy = F.cross_entropy(scores.flatten(0, 1), chosen.flatten(), reduction="none").view_as(chosen)
            losses[f"action/{name}"] = entropy.masked_fill(~(exists & moved), 0).sum(dim=1).mean()
        return losses

    def sample(
        self, logits: dict[str, Tensor], temperature: float, generator: Generator | Sequence[Generator] | None
    ) -> Tensor:
        """Sample choices (B, factors) from scores; temperature 0 takes the most likely ones.

        With a sequence of generators, each samples its own row.
        """
        choices = []
        for scores in logits.values():
            if temperature == 0:
                choices.append(scores.argmax(dim=-1))
            else:
                choices.append(sample_rows((scores / temperature).softmax(dim=-1), generator))
        action = torch.stack(choices, dim=-1)
        return reset_unused_camera(action) if self.minecraft else action


def sample_rows(probabilities: Tensor, generator: Generator | Sequence[Generator] | None) -> Tensor:
    """Sample one choice from each row of (B, choices)."""
    if generator is None or isinstance(generator, Generator):
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    rows = zip(probabilities, generator, strict=True)
    samples = [torch.multinomial(row.to(own.device), 1, generator=own) for row, own in rows]
    return torch.cat(samples).to(probabilities.device)


class PreviousMinecraftAction(nn.Module):
    """Embedding of a Minecraft action: the sum of each button's embedding and a projection of the camera movement."""

    def __init__(self, width: int):
        super().__init__()
        self.camera = nn.Linear(2, width)
        self.buttons = module_dict({name: nn.Embedding(2, width) for name in EMBEDDED_BUTTONS})

    def forward(self, actions: Tensor) -> Tensor:
        """Embed choices (..., 2) as (..., D)."""
        decoded = decode_action(actions)
        buttons = zip(EMBEDDED_BUTTONS, self.buttons.values(), strict=True)
        parts = [button(decoded[name].long()) for name, button in buttons]
        return self.camera(decoded["camera"].to(self.camera.weight.dtype)) + sum(parts)


class PreviousFactors(nn.Module):
    """Embedding of a factored action: the sum of an embedding of each choice."""

    def __init__(self, factors: dict[str, int], width: int):
        super().__init__()
        self.factors = module_dict({name: nn.Embedding(choices, width) for name, choices in factors.items()})

    def forward(self, actions: Tensor) -> Tensor:
        """Embed choices (..., factors) as (..., D)."""
        parts = zip(self.factors.values(), actions.unbind(-1), strict=True)
        return torch.stack([factor(chosen) for factor, chosen in parts]).sum(dim=0)


class PreviousAction(nn.Module):
    """Embedding of the previous action, which training hides at random."""

    def __init__(self, config: Rocket2Config):
        super().__init__()
        minecraft = config.action_space == "minecraft"
        self.action = (
            PreviousMinecraftAction(config.width) if minecraft else PreviousFactors(config.factors, config.width)
        )
        self.hidden = nn.Embedding(1, config.width)  # replaces a hidden action
        self.dropout = config.previous_action_dropout

    def forward(self, actions: Tensor, generator: Generator | None, hidden: Tensor | None = None) -> Tensor:
        """Embed previous actions (N, factors) as (N, D).

        In training most of them are hidden, because the policy would otherwise repeat its actions and ignore the
        images.

        Args:
            actions: Choices, (N, factors).
            generator: Source of the random numbers that decide which actions are hidden.
            hidden: (N,) bool, the actions to hide; drawn from the generator if None.
        """
        embedded = self.action(actions)
        if not self.training or not self.dropout:
            return embedded
        if hidden is None:
            source = generator.device if generator is not None else embedded.device
            hidden = torch.rand(len(embedded), generator=generator, device=source).to(embedded.device) < self.dropout
        return torch.where(hidden[:, None], self.hidden.weight, embedded)
