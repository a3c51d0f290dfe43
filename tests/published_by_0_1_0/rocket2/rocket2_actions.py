"""What ROCKET-2 does and has just done: one choice from each factor of an action."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .configuration_rocket2 import Rocket2Config
from .rocket2_minecraft import BUTTONS, CAMERA_REST, close_camera, read_action

# "drop" is among the buttons that a policy presses, but not among those that it remembers.
REMEMBERED = tuple(button for button in BUTTONS if button != "drop")


def by_name(modules: dict[str, nn.Module]) -> nn.ModuleDict:
    """A prefix lets names be those of methods of a module, as "forward" is."""
    return nn.ModuleDict({f"act_{name}": module for name, module in modules.items()})


class ActionChoice(nn.Linear):
    """Scores of the choices of one factor. New ones are nearly even."""

    GAIN = 0.01


class ActionHeads(nn.Module):
    def __init__(self, config: Rocket2Config):
        super().__init__()
        self.minecraft = config.action_space == "minecraft"
        self.names = list(config.factors)
        self.factors = by_name({name: ActionChoice(config.width, n) for name, n in config.factors.items()})

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """(..., D) to (..., choices) by factor."""
        factors = zip(self.names, self.factors.values(), strict=True)
        return {name: factor(hidden).float() for name, factor in factors}

    def losses(self, logits: dict[str, Tensor], actions: Tensor, counted: Tensor) -> dict[str, Tensor]:
        """Cross-entropies summed over the steps that are counted, (B, T) bool, and averaged over the batch.

        Minecraft's camera counts only where it was moved, as it is otherwise closed by a button.
        """
        losses = {}
        for (name, scores), chosen in zip(logits.items(), actions.unbind(-1), strict=True):
            moved = chosen != CAMERA_REST if self.minecraft and name == "camera" else torch.ones_like(counted)
            surprise = F.cross_entropy(scores.flatten(0, 1), chosen.flatten(), reduction="none").view_as(chosen)
            losses[f"action/{name}"] = surprise.masked_fill(~(counted & moved), 0).sum(dim=1).mean()
        return losses

    def sample(
        self, logits: dict[str, Tensor], temperature: float, generator: Generator | Sequence[Generator] | None
    ) -> Tensor:
        """Choices (B, factors); the likeliest ones at temperature 0. Of several generators each draws its own row."""
        choices = []
        for scores in logits.values():
            if temperature == 0:
                choices.append(scores.argmax(dim=-1))
            else:
                choices.append(drawn((scores / temperature).softmax(dim=-1), generator))
        action = torch.stack(choices, dim=-1)
        return close_camera(action) if self.minecraft else action


def drawn(chances: Tensor, generator: Generator | Sequence[Generator] | None) -> Tensor:
    """One choice of each row of (B, choices)."""
    if generator is None or isinstance(generator, Generator):
        return torch.multinomial(chances, 1, generator=generator)[:, 0]
    rows = zip(chances, generator, strict=True)
    return torch.cat([torch.multinomial(row.to(own.device), 1, generator=own) for row, own in rows]).to(chances.device)


class PreviousMinecraftAction(nn.Module):
    """The sum of what each button says by being up or down, and of a map of the camera's movement."""

    def __init__(self, width: int):
        super().__init__()
        self.camera = nn.Linear(2, width)
        self.buttons = by_name({name: nn.Embedding(2, width) for name in REMEMBERED})

    def forward(self, actions: Tensor) -> Tensor:
        """(..., 2) to (..., D)."""
        done = read_action(actions)
        buttons = zip(REMEMBERED, self.buttons.values(), strict=True)
        parts = [button(done[name].long()) for name, button in buttons]
        return self.camera(done["camera"].to(self.camera.weight.dtype)) + sum(parts)


class PreviousFactors(nn.Module):
    """The sum of an embedding of each choice."""

    def __init__(self, factors: dict[str, int], width: int):
        super().__init__()
        self.factors = by_name({name: nn.Embedding(choices, width) for name, choices in factors.items()})

    def forward(self, actions: Tensor) -> Tensor:
        """(..., factors) to (..., D)."""
        parts = zip(self.factors.values(), actions.unbind(-1), strict=True)
        return torch.stack([factor(chosen) for factor, chosen in parts]).sum(dim=0)


class PreviousAction(nn.Module):
    def __init__(self, config: Rocket2Config):
        super().__init__()
        minecraft = config.action_space == "minecraft"
        self.action = (
            PreviousMinecraftAction(config.width) if minecraft else PreviousFactors(config.factors, config.width)
        )
        self.hidden = nn.Embedding(1, config.width)  # stands for an action that is not shown
        self.dropout = config.previous_action_dropout

    def forward(self, actions: Tensor, generator: Generator | None, hidden: Tensor | None = None) -> Tensor:
        """(N, factors) to (N, D). Training hides most, or a policy would copy what it did instead of looking: those
        that are `hidden`, (N,) bool, or as many as the generator draws."""
        shown = self.action(actions)
        if not self.training or not self.dropout:
            return shown
        if hidden is None:
            source = generator.device if generator is not None else shown.device
            hidden = torch.rand(len(shown), generator=generator, device=source).to(shown.device) < self.dropout
        return torch.where(hidden[:, None], self.hidden.weight, shown)
