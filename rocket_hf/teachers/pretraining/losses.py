"""What a small VGGT learns from: depth, its edges, and cameras. Pure functions, each the mean of what it names.

    depth         |log d - log d*|                 a factor wrong costs the same near and far
    gradient      the same of differences of log-depth between pixels that lie 1, 2, 4 and 8 apart: edges and slopes
    translation   |t - t*|, in meters, of every camera but the first
    rotation      min(|q - q*|, |q + q*|), as a quaternion and its opposite are one rotation
    view          |a - a*| of the angles of view, in radians

Pixels that are nearer than NEAREST or farther than FARTHEST meters, the sky among them, count nowhere.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .heads import Geometry

NEAREST, FARTHEST = 0.02, 5.0
WEIGHTS = {"depth": 1.0, "gradient": 1.0, "translation": 3.0, "rotation": 1.0, "view": 0.2}
APART = (1, 2, 4, 8)


@dataclass
class Truth:
    depth: Tensor  # (B, S, H, W), in meters
    translations: Tensor  # (B, S, 3), relative to the first camera
    quaternions: Tensor  # (B, S, 4)
    angles_of_view: Tensor  # (B, S)


def geometry_losses(found: Geometry, truth: Truth) -> dict[str, Tensor]:
    valid = seen(truth.depth)
    log_depth = truth.depth.clamp(NEAREST, FARTHEST).log()
    return {
        "depth": mean_where(valid, (found.log_depth - log_depth).abs()),
        "gradient": gradient_loss(found.log_depth, log_depth, valid),
        "translation": distance(found.translations, truth.translations)[:, 1:].mean() if many(truth) else zero(found),
        "rotation": rotation_loss(found.quaternions, truth.quaternions)[:, 1:].mean() if many(truth) else zero(found),
        "view": (found.angles_of_view - truth.angles_of_view).abs().mean(),
    }


def weighted(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


def seen(depth: Tensor) -> Tensor:
    return (depth > NEAREST) & (depth < FARTHEST)


def many(truth: Truth) -> bool:
    return truth.depth.shape[1] > 1


def zero(found: Geometry) -> Tensor:
    """A camera alone has no other that it could be placed by."""
    return found.log_depth.new_zeros(())


def mean_where(valid: Tensor, values: Tensor) -> Tensor:
    return torch.where(valid, values, 0).sum() / valid.sum().clamp(min=1)


def gradient_loss(found: Tensor, wanted: Tensor, valid: Tensor) -> Tensor:
    """Along rows and columns, (..., H, W)."""
    error, parts = found - wanted, []
    for apart in APART:
        for axis in (-1, -2):
            length = error.shape[axis] - apart
            pairs = [tensor.narrow(axis, start, length) for tensor in (error, valid) for start in (0, apart)]
            left, right, left_valid, right_valid = pairs
            parts.append(mean_where(left_valid & right_valid, (left - right).abs()))
    return torch.stack(parts).mean()


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    return torch.linalg.vector_norm(found - wanted, dim=-1)


def rotation_loss(found: Tensor, wanted: Tensor) -> Tensor:
    return torch.minimum(distance(found, wanted), distance(found, -wanted))
