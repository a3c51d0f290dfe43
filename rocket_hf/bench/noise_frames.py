"""Dataset of random images, for feature caches of benchmarks."""

from collections.abc import Sequence

import torch
from torch import Tensor


class NoiseFrames:
    """Random frames of several square cameras, generated once so that reading them costs almost nothing."""

    dataset, revision, fingerprint = "noise", "local", "0"

    def __init__(self, cameras: Sequence[str], size: int, count: int):
        self.sizes = dict.fromkeys(cameras, (size, size))
        draw = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (len(cameras), count, 3, size, size), generator=draw, dtype=torch.uint8)

    def __len__(self) -> int:
        return self.images.shape[1]

    def read_images(self, indices: Sequence[int]) -> list[Tensor]:
        return [camera[list(indices)] for camera in self.images]
