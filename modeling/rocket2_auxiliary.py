"""Auxiliary heads of ROCKET-2, which predict whether and where the goal is visible in the agent's view.

Their losses train the encoders; no action depends on their outputs.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_rocket2 import AUXILIARY_HEADS
from .policy_interface import mean_over_steps

NO_POSITION = -1.0  # coordinates of an empty mask


class AuxiliaryHeads(nn.ModuleDict):
    """Linear layer for each auxiliary head."""

    def __init__(self, width: int, names: list[str] | tuple[str, ...]):
        super().__init__({name: nn.Linear(width, AUXILIARY_HEADS[name]) for name in names})

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """Return the raw outputs of each head for hidden states (..., D) of the last view token.

        That token does not depend on the interaction and the previous action of its step.
        """
        return {name: head(hidden).float() for name, head in self.items()}

    @staticmethod
    def to_predictions(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert raw outputs to the probability that the goal is visible (...) and its position (..., 2 or 4)."""
        return {name: value[..., 0].sigmoid() if name == "visibility" else value for name, value in outputs.items()}


def auxiliary_losses(outputs: dict[str, Tensor], targets: Mapping[str, Tensor], is_pad: Tensor) -> dict[str, Tensor]:
    """Return the loss of each head: binary cross-entropy of the visibility, and absolute error of the positions.

    It is the mean over the steps that exist, for positions over those of them with a visible goal.

    Args:
        outputs: Raw outputs (B, T, values) by head.
        targets: "visibility" (B, T) bool, and the targets of the other heads, (B, T, values).
        is_pad: (B, T) bool, True on steps after the end of the episode.
    """
    visible, losses = targets["visibility"], {}
    for name, value in outputs.items():
        if name == "visibility":
            error = F.binary_cross_entropy_with_logits(value[..., 0], visible.to(value.dtype), reduction="none")
            losses["auxiliary/visibility"] = mean_over_steps(error, is_pad)
        else:
            excluded = ~visible | is_pad
            error = (value - targets[name]).abs().mean(dim=-1).masked_fill(excluded, 0)
            losses[f"auxiliary/{name}"] = mean_over_steps(error, excluded)
    return losses


def auxiliary_targets(masks: Tensor) -> dict[str, Tensor]:
    """Return the targets of the heads for goal masks (..., H, W), as fractions of the image.

    They are the visibility (...), the center of the pixels as point (y, x), (..., 2), and the bounding box
    (x0, y0, x1, y1), (..., 4). The coordinates of an empty mask are `NO_POSITION`.
    """
    masks = masks.bool()
    visible = masks.flatten(-2).any(dim=-1)
    axes = (mask_extent(masks.any(dim=other_axis), masks.sum(dim=other_axis)) for other_axis in (-1, -2))
    low, high, center = zip(*axes, strict=True)  # each (y, x)
    point = torch.stack(center, dim=-1)
    box = torch.stack([low[1], low[0], high[1], high[0]], dim=-1)
    invisible = ~visible[..., None]
    return {
        "visibility": visible,
        "point": point.masked_fill(invisible, NO_POSITION),
        "box": box.masked_fill(invisible, NO_POSITION),
    }


def mask_extent(occupied: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return begin, end and mean pixel position of a mask along one image axis, as fractions of its length.

    Args:
        occupied: (..., n) bool, whether the mask has a pixel at each position.
        pixels: (..., n), number of the mask's pixels at each position.
    """
    count = occupied.shape[-1]
    begin = occupied.int().argmax(dim=-1)
    end = count - occupied.flip(-1).int().argmax(dim=-1)
    centers = torch.arange(count, device=occupied.device) + 0.5
    mean = (pixels * centers).sum(dim=-1) / pixels.sum(dim=-1).clamp_min(1)
    return begin / count, end / count, mean / count
