"""What ROCKET-2 learns to say of the goal in its own view: whether it is seen, and where. No action reads it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_rocket2 import AUXILIARY_HEADS
from .contract import mean_over_steps

# How much each loss of ROCKET-2 weighs in the published training, by the beginning of its name.
PUBLISHED_WEIGHTS = {"action": 0.01, "auxiliary/visibility": 0.01, "auxiliary/point": 0.1, "auxiliary/box": 0.1}
UNSEEN = -1.0  # where an empty mask lies


class AuxiliaryHeads(nn.ModuleDict):
    def __init__(self, width: int, names: list[str] | tuple[str, ...]):
        super().__init__({name: nn.Linear(width, AUXILIARY_HEADS[name]) for name in names})

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """(..., D), of the last view token, which knows neither the interaction nor the previous action of its step."""
        return {name: head(hidden).float() for name, head in self.items()}

    @staticmethod
    def seen(said: dict[str, Tensor]) -> dict[str, Tensor]:
        """For people: the probability that the goal is in view (B,), and where it would be (B, 2 or 4)."""
        return {name: value[..., 0].sigmoid() if name == "visibility" else value for name, value in said.items()}


def auxiliary_losses(said: dict[str, Tensor], told: dict[str, Tensor], is_pad: Tensor) -> dict[str, Tensor]:
    """Mean over the steps that exist; of the place, over those where there is one (none costs nothing).

    `told` has `visibility` (B, T) bool, and `point` and `box` (B, T, 2 or 4) for the heads that say them.
    """
    visible, losses = told["visibility"], {}
    for name, value in said.items():
        if name == "visibility":
            error = F.binary_cross_entropy_with_logits(value[..., 0], visible.to(value.dtype), reduction="none")
            losses["auxiliary/visibility"] = mean_over_steps(error, is_pad)
        else:
            away = ~visible | is_pad
            error = (value - told[name]).abs().mean(dim=-1).masked_fill(away, 0)
            losses[f"auxiliary/{name}"] = mean_over_steps(error, away)
    return losses


def describe_masks(masks: Tensor) -> dict[str, Tensor]:
    """What the heads are to say of masks (..., H, W): visibility (...), point (..., 2) and box (..., 4)."""
    masks = masks.bool()
    visible = masks.flatten(-2).any(dim=-1)
    low, high, middle = zip(*(extent(masks.any(dim=other), masks.sum(dim=other)) for other in (-1, -2)), strict=True)
    point = torch.stack(middle, dim=-1)
    box = torch.stack([low[1], low[0], high[1], high[0]], dim=-1)
    gone = ~visible[..., None]
    return {"visibility": visible, "point": point.masked_fill(gone, UNSEEN), "box": box.masked_fill(gone, UNSEEN)}


def extent(occupied: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Along one side of a picture (..., n): where the mask begins, ends, and its mean, as shares of the side."""
    count = occupied.shape[-1]
    begin = occupied.int().argmax(dim=-1)
    end = count - occupied.flip(-1).int().argmax(dim=-1)
    centres = torch.arange(count, device=occupied.device) + 0.5
    mean = (pixels * centres).sum(dim=-1) / pixels.sum(dim=-1).clamp_min(1)
    return begin / count, end / count, mean / count
