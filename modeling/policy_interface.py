"""The contracts between data, policy and alignment head: the batch, the layer numbers, what a policy returns.

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

from .strict_config import nearest


class Batch(TypedDict, total=False):
    """What a model reads; the processor makes it. Numbers are normalized; images are not."""

    images: Tensor  # (B, V, 3, H, W) uint8, or float in [0, 1]
    camera_mask: Tensor  # (B, V) bool, False where the camera is missing
    input_ids: Tensor  # (B, L)
    attention_mask: Tensor  # (B, L), 0 on padding
    state: Tensor  # (B, S)
    actions: Tensor  # (B, chunk, A), training only
    action_is_pad: Tensor  # (B, chunk) bool, True on steps after the end of the episode
    noise: Tensor  # (B, chunk, widest action of the policy), flow matching: drawn from the generator unless given
    time: Tensor  # (B,), likewise, training only
    episode_index: Tensor  # (B,) with frame_index, the key of a teacher's cached features
    frame_index: Tensor  # (B,)


@dataclass
class PolicyOutput:
    losses: dict[str, Tensor]  # scalars by name
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

    This is eq. 4 of ROCKET (arXiv 2602.17951); the paper's lambda is 0.5.
    """
    action = [loss for name, loss in losses.items() if name.startswith("action/")]
    alignment = [loss for name, loss in losses.items() if name.startswith("alignment/")]
    total = torch.stack(action).sum()
    return total + alignment_weight * torch.stack(alignment).mean() if alignment else total


class Policy(nn.Module, ABC):
    """A backbone. It keeps the image tokens of tapped layers, and draws whatever is random from the generator."""

    attention_implementations: tuple[str, ...]
    _no_split_modules: list[str]  # the units of FSDP, and what `device_map` may not tear apart

    @abstractmethod
    def forward(self, batch: Batch, taps: Sequence[int] = (), generator: Generator | None = None) -> PolicyOutput:
        """The action losses and the tapped image tokens; without actions in the batch the taps alone."""

    @abstractmethod
    def predict_action_chunk(self, batch: Batch, generator: Generator | None = None) -> Tensor:
        """Normalized actions (B, chunk, at least action_dim)."""


def resolve_layer(layer: int, depth: int) -> int:
    """The number of a layer in 0..depth: the stream after block `layer`, 0 the embeddings, -1 after the last block."""
    resolved = layer + depth + 1 if layer < 0 else layer
    if not 0 <= resolved <= depth:
        raise ValueError(
            f"layer {layer} does not exist: this model has {depth} blocks, so 0..{depth} or -{depth + 1}..-1"
        )
    return resolved


def check_batch(batch: Mapping[str, Any], required: set[str], shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuses unknown and missing keys and wrong shapes by name. `shapes` are those behind the batch dimension."""
    known = Batch.__annotations__
    for key in batch:
        if key not in known:
            raise ValueError(f"a batch has no key {key!r}: {nearest(key, known)}")
    if missing := sorted(key for key in required if key not in batch):
        raise ValueError(
            f"the batch lacks {', '.join(map(repr, missing))}; it has {', '.join(map(repr, sorted(batch)))}"
        )
    for key, shape in shapes.items():
        if key in batch and tuple(batch[key].shape[1:]) != shape:
            wanted = ", ".join(map(str, ("batch", *shape)))
            raise ValueError(f"batch[{key!r}] must be ({wanted}), got {tuple(batch[key].shape)}")


def image_tokens(stream: Tensor, cameras: int, tokens: int, start: int = 0) -> Tensor:
    """The image tokens of a residual stream, cameras x tokens positions from `start` on: (B, V, T, D).

    In training this is a view, since the graph keeps the stream anyway. Elsewhere a copy lets go of the text tokens.
    """
    images = stream[:, start : start + cameras * tokens].unflatten(1, (cameras, tokens))
    return images if torch.is_grad_enabled() else images.clone()


def unit_range(images: Tensor) -> Tensor:
    """Images of bytes, or already in [0, 1], in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def mean_over_steps(error: Tensor, is_pad: Tensor | None) -> Tensor:
    """The mean of an error (B, chunk) over the steps that exist.

    Each sample weighs the same however long it is, so the mean over ranks is the mean over the whole batch.
    """
    if is_pad is None:
        return error.mean()
    exists = (~is_pad).to(error.dtype)
    return ((error * exists).sum(dim=1) / exists.sum(dim=1).clamp_min(1)).mean()
