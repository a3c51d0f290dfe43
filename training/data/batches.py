"""What the workers hand to the training process: raw pictures as bytes, numbers normalized, all else ready.

Whatever is random about a sample is drawn from a generator that its position in the run's order of samples seeds, so
that a run does not depend on how many workers or ranks share it, nor on where it was interrupted.
"""

from typing import TypedDict

import torch
from torch import Generator, Tensor


class RobotBatch(TypedDict, total=False):
    """On the CPU, collated in the worker. B samples, V cameras in the policy's order."""

    images: list[Tensor]  # by camera, (B, 3, H, W) uint8; each camera has its own size
    camera_mask: Tensor  # (B, V) bool
    input_ids: Tensor  # (B, L)
    attention_mask: Tensor  # (B, L)
    state: Tensor  # (B, S) normalized
    actions: Tensor  # (B, chunk, A) normalized
    action_is_pad: Tensor  # (B, chunk) bool
    noise: Tensor  # (B, chunk, widest action), where the policy draws noise
    time: Tensor  # (B,), likewise
    augmentation: Tensor  # (B, V, what `training.data.augmentation` draws)
    dataset: Tensor  # (B,) number in the mixture, with the two below the name of a frame
    episode_index: Tensor  # (B,)
    frame_index: Tensor  # (B,)
    index: Tensor  # (B,) of the frame in its dataset
    position: Tensor  # (B,) in the run's order of samples
    features: dict[str, Tensor]  # rows of a teacher's feature cache, still encoded


def sample_generator(seed: int, position: int) -> Generator:
    """The source of everything random about one sample."""
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + position * 0xD1342543DE82EF95) % 2**63)
