"""Interface between data, policy and alignment head: batch, layer numbers, and what policy and model return.

Shapes: B batch, V cameras (views), L prompt tokens, S state, A action, T image tokens of one camera (rows x columns,
row by row), D width of the residual stream.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Generator, Tensor, nn
from transformers.utils import ModelOutput

from .errors import UserError
from .strict_config import suggest_name


class Batch(TypedDict, total=False):
    """Inputs of a model: the output of its processor and, optionally, noise, time and the sample's indices.

    State and actions are normalized; images are not.
    """

    images: Tensor  # (B, V, 3, H, W) uint8, or float in [0, 1]
    camera_mask: Tensor  # (B, V) bool, False where the camera is missing
    input_ids: Tensor  # (B, L)
    attention_mask: Tensor  # (B, L), 0 on padding
    state: Tensor  # (B, S)
    actions: Tensor  # (B, chunk, A), only in training
    action_is_pad: Tensor  # (B, chunk) bool, True on steps after the end of the episode
    action_mask: Tensor  # (B, A) bool, False on dimensions that the sample's robot lacks; for flow matching only
    noise: Tensor  # (B, chunk, max_action_dim), for flow matching; drawn from the generator if missing
    time: Tensor  # (B,), flow time in training; drawn from the generator if missing
    episode_index: Tensor  # (B,), with frame_index the key of a sample in the feature cache
    frame_index: Tensor  # (B,)


@dataclass
class PolicyOutput:
    """Output of a backbone: named losses and the residual stream at the image tokens of the tapped layers."""

    losses: dict[str, Tensor]  # scalars by name; empty if the batch has no actions
    taps: dict[int, Tensor]  # by resolved layer number: (B, V, T, D)


@dataclass
class RocketOutput(ModelOutput):
    """Output of `RocketForActionPrediction.forward`.

    Attributes:
        loss: Scalar to minimize: the sum of the action losses plus `AlignmentConfig.weight` times the mean of the
            alignment losses (ROCKET, eq. 4).
        losses: Every loss by name: "action/NAME", and "alignment/STUDENT-TEACHER" for each aligned layer pair.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None


def weighted_loss(losses: Mapping[str, Tensor], alignment_weight: float) -> Tensor:
    """Return the sum of the action losses plus `alignment_weight` times the mean of the alignment losses.

    This is eq. 4 of ROCKET (arXiv 2602.17951), whose lambda is 0.5.
    """
    action = [loss for name, loss in losses.items() if name.startswith("action/")]
    alignment = [loss for name, loss in losses.items() if name.startswith("alignment/")]
    total = torch.stack(action).sum()
    return total + alignment_weight * torch.stack(alignment).mean() if alignment else total


class Policy(nn.Module, ABC):
    """Base class of the backbones.

    A policy keeps the image tokens of the tapped layers only, and draws all random numbers from the given generator.
    """

    attention_implementations: tuple[str, ...]  # accepted values of `attn_implementation`
    _no_split_modules: list[str]  # modules that FSDP wraps and that `device_map` must not split

    @abstractmethod
    def forward(self, batch: Batch, taps: Sequence[int] = (), generator: Generator | None = None) -> PolicyOutput:
        """Return the action losses and the tapped image tokens; only the latter if the batch has no actions."""

    @abstractmethod
    def predict_action_chunk(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        """Return normalized actions (B, chunk, at least action_dim); the caller cuts off the dimensions beyond it."""


def resolve_layer(layer: int, depth: int) -> int:
    """Return the non-negative number of a layer.

    Layer i is the residual stream after block i, layer 0 the embeddings. Negative numbers count from the end: -1 is the
    stream after the last block.
    """
    resolved = layer + depth + 1 if layer < 0 else layer
    if not 0 <= resolved <= depth:
        raise UserError(
            f"layer {layer} does not exist: the model has {depth} blocks, so its layers are 0..{depth} or "
            f"-{depth + 1}..-1"
        )
    return resolved


def check_batch(batch: Mapping[str, Any], required: set[str], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise `ValueError` on unknown or missing keys and on wrong shapes.

    Args:
        batch: The batch to check.
        required: Keys that the batch must have.
        shapes: Expected shape of each key, without the batch dimension.
    """
    known = Batch.__annotations__
    for key in batch:
        if key not in known:
            raise ValueError(f"a batch has no key {key!r}: {suggest_name(key, known)}")
    if missing := sorted(key for key in required if key not in batch):
        raise ValueError(
            f"the batch lacks {', '.join(map(repr, missing))}; it has {', '.join(map(repr, sorted(batch)))}"
        )
    for key, shape in shapes.items():
        if key in batch and tuple(batch[key].shape[1:]) != shape:
            expected = ", ".join(map(str, ("batch", *shape)))
            raise ValueError(f"batch[{key!r}] must be ({expected}), got {tuple(batch[key].shape)}")


def image_tokens(stream: Tensor, cameras: int, tokens: int, start: int = 0) -> Tensor:
    """Return the image tokens of a residual stream: `cameras` x `tokens` positions from `start` on, as (B, V, T, D).

    With gradients this is a view, because the autograd graph keeps the stream anyway. Without gradients it is a copy,
    which lets the memory of the text tokens be freed.
    """
    images = stream[:, start : start + cameras * tokens].unflatten(1, (cameras, tokens))
    return images if torch.is_grad_enabled() else images.clone()


def to_unit_range(images: Tensor) -> Tensor:
    """Convert uint8 images to floats in [0, 1]. Float images must already be in that range and stay unchanged."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def mean_over_steps(error: Tensor, is_pad: Tensor | None) -> Tensor:
    """Return the mean of a per-step error (B, chunk) over the steps that are not padding.

    The mean is taken within each sample first. Each sample then has the same weight whatever its length, and the mean
    over ranks is the mean over the whole batch.
    """
    if is_pad is None:
        return error.mean()
    exists = (~is_pad).to(error.dtype)
    return ((error * exists).sum(dim=1) / exists.sum(dim=1).clamp_min(1)).mean()
