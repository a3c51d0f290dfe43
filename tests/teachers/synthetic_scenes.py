"""Synthetic RGB-D scenes whose brightness depends on their depth, with random camera poses."""

import math

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from rocket_hf.teachers.pretraining.scenes import RgbdScenes

SIDE = 32


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_poses(*shape: int) -> Tensor:
    """Return camera poses, (*shape, 4, 4)."""
    count = math.prod(shape)
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, :3, :3] = torch.from_numpy(Rotation.random(count, random_state=0).as_matrix())
    poses[:, :3, 3] = torch.randn(count, 3, generator=seeded())
    return poses.unflatten(0, shape)


def synthetic_scenes(count: int = 24, cameras: int = 2, side: int = SIDE) -> RgbdScenes:
    """Return slopes from 0.5 to 3 meters, brighter where they are nearer, of three tasks."""
    random = torch.rand(2, count, cameras, 1, 1, generator=seeded())
    depth = 0.5 + 1.5 * random[0] + random[1] * torch.linspace(0, 1, side).expand(side, side)
    images = (255 * (1 - depth / 3)).byte().unsqueeze(2).expand(-1, -1, 3, -1, -1)
    tasks = [f"task {number % 3}" for number in range(count)]
    return RgbdScenes(images, depth.half(), torch.full((count, cameras), 0.9), random_poses(count, cameras), tasks)
