"""Format of the batches that loader workers produce, and the random generator of each sample.

Everything random about a sample is drawn from a generator seeded by its position in the run's order of samples, so that
a run depends neither on the number of workers and ranks nor on where it was interrupted.
"""

from typing import TypedDict

import torch
from torch import Generator, Tensor


class LoaderBatch(TypedDict, total=False):
    """Batch on the CPU, collated in a worker: B samples, V cameras in the policy's order.

    Images are still uint8, in the size of the dataset or resized by an ImageResizer. Everything else is ready for the
    model.
    """

    images: list[Tensor]  # one tensor per camera, (B, 3, H, W) uint8; each camera has its own size
    camera_mask: Tensor  # (B, V) bool
    input_ids: Tensor  # (B, L)
    attention_mask: Tensor  # (B, L)
    state: Tensor  # (B, S) normalized, 0 on dimensions that the dataset lacks
    actions: Tensor  # (B, chunk, A) normalized, 0 on dimensions that the dataset lacks
    action_is_pad: Tensor  # (B, chunk) bool
    action_mask: Tensor  # (B, A) bool, False on dimensions that the dataset lacks; absent if no dataset lacks any
    noise: Tensor  # (B, chunk, max_action_dim), if the policy draws noise
    time: Tensor  # (B,) flow-matching times, if the policy draws noise
    augmentation: Tensor  # (B, V, parameters), see training/data/augmentation.py
    image_aspects: Tensor  # (V,) width / height of the camera's images, if they have been resized
    dataset: Tensor  # (B,) index of the dataset in the mixture
    episode_index: Tensor  # (B,)
    frame_index: Tensor  # (B,) index of the recorded frame in its episode
    index: Tensor  # (B,) lerobot's index of the frame in its dataset
    position: Tensor  # (B,) position in the run's order of samples
    features: dict[str, Tensor]  # rows of a teacher's feature cache, still encoded


def sample_generator(seed: int, position: int) -> Generator:
    """Return the generator from which everything random about one sample is drawn."""
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + position * 0xD1342543DE82EF95) % 2**63)
