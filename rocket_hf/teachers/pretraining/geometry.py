"""Camera geometry: poses relative to a scene's first camera, unit quaternions, angles of view.

A pose (4, 4) maps points from camera to world coordinates. A camera's axes: z forward, x to the right, y down.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def relative_poses(poses: Tensor) -> Tensor:
    """Return the poses (B, S, 4, 4) of a scene's cameras in the coordinates of its first camera."""
    return torch.linalg.inv(poses[:, :1]) @ poses


def quaternions(rotations: Tensor) -> Tensor:
    """Convert rotations (..., 3, 3) to unit quaternions (..., 4), real part first and not negative.

    The diagonal gives the squares of the four components. Dividing by the largest one is accurate for all rotations.
    """
    xx, yy, zz = rotations.diagonal(dim1=-2, dim2=-1).unbind(-1)
    squares = torch.stack([1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz], dim=-1)
    lower, upper = rotations, rotations.transpose(-1, -2)
    differences, sums = lower - upper, lower + upper
    wx, wy, wz = differences[..., 2, 1], differences[..., 0, 2], differences[..., 1, 0]
    xy, xz, yz = sums[..., 0, 1], sums[..., 0, 2], sums[..., 1, 2]
    ww, qx, qy, qz = squares.unbind(-1)
    rows = [[ww, wx, wy, wz], [wx, qx, xy, xz], [wy, xy, qy, yz], [wz, xz, yz, qz]]
    candidates = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # (..., 4, 4): 4 q_i q, by i
    largest = squares.argmax(dim=-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    chosen = F.normalize(candidates.gather(-2, largest).squeeze(-2), dim=-1)
    return torch.where(chosen[..., :1] < 0, -chosen, chosen)


def rotation_angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle in degrees between the rotations of two unit quaternions (..., 4)."""
    cosines = (first * second).sum(dim=-1).abs().clamp(max=1)
    return torch.rad2deg(2 * cosines.acos())


def angles_of_view(intrinsics: Tensor, height: int) -> Tensor:
    """Return the vertical angle of view in radians of cameras with intrinsics (..., 3, 3) and images of this height."""
    return 2 * torch.atan(height / 2 / intrinsics[..., 1, 1])
