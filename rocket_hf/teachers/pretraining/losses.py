"""Losses for pretraining a small VGGT: depth, depth gradients and cameras. Each function returns a mean.

    depth         |log d - log d*|                 an error by a factor costs the same at any distance
    gradient      the same for differences of log-depth between pixels at distance 1, 2, 4 and 8: edges and slopes
    translation   |t - t*| in meters, for every camera but the first
    rotation      min(|q - q*|, |q + q*|), because a quaternion and its opposite are the same rotation
    view          |a - a*| for the angles of view, in radians

Pixels nearer than NEAREST or farther than FARTHEST meters (such as the sky) are excluded from all losses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .heads import GeometryPrediction

NEAREST, FARTHEST = 0.02, 5.0
WEIGHTS = {"depth": 1.0, "gradient": 1.0, "translation": 3.0, "rotation": 1.0, "view": 0.2}
PIXEL_DISTANCES = (1, 2, 4, 8)


@dataclass
class GeometryTargets:
    """True depth and cameras of the frames of scenes."""

    depth: Tensor  # (B, S, H, W), in meters
    translations: Tensor  # (B, S, 3), relative to the first camera
    quaternions: Tensor  # (B, S, 4)
    angles_of_view: Tensor  # (B, S)


def geometry_losses(predicted: GeometryPrediction, targets: GeometryTargets) -> dict[str, Tensor]:
    valid = is_valid_depth(targets.depth)
    log_depth = targets.depth.clamp(NEAREST, FARTHEST).log()
    if targets.depth.shape[1] > 1:
        translation = distance(predicted.translations, targets.translations)[:, 1:].mean()
        rotation = rotation_loss(predicted.quaternions, targets.quaternions)[:, 1:].mean()
    else:  # poses are relative to the first camera, so a single camera has no pose to predict
        translation = rotation = predicted.log_depth.new_zeros(())
    return {
        "depth": mean_where(valid, (predicted.log_depth - log_depth).abs()),
        "gradient": gradient_loss(predicted.log_depth, log_depth, valid),
        "translation": translation,
        "rotation": rotation,
        "view": (predicted.angles_of_view - targets.angles_of_view).abs().mean(),
    }


def weighted_sum(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


def is_valid_depth(depth: Tensor) -> Tensor:
    return (depth > NEAREST) & (depth < FARTHEST)


def mean_where(valid: Tensor, values: Tensor) -> Tensor:
    return torch.where(valid, values, 0).sum() / valid.sum().clamp(min=1)


def gradient_loss(predicted: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean error of differences along the rows and columns of log-depths (..., H, W)."""
    error, parts = predicted - target, []
    for pixels in PIXEL_DISTANCES:
        for axis in (-1, -2):
            length = error.shape[axis] - pixels
            pairs = [tensor.narrow(axis, start, length) for tensor in (error, valid) for start in (0, pixels)]
            left, right, left_valid, right_valid = pairs
            parts.append(mean_where(left_valid & right_valid, (left - right).abs()))
    return torch.stack(parts).mean()


def distance(predicted: Tensor, target: Tensor) -> Tensor:
    return torch.linalg.vector_norm(predicted - target, dim=-1)


def rotation_loss(predicted: Tensor, target: Tensor) -> Tensor:
    return torch.minimum(distance(predicted, target), distance(predicted, -target))
