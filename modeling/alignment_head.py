"""Alignment head: maps layers of a policy's residual stream to layers of a 3D vision model and returns their distance.

In ROCKET (arXiv 2602.17951) all layer pairs share ONE projector, so that the gradients which they send into the policy
add up instead of cancelling. Shallow pairs use only its first hidden units (nested, Matryoshka widths), deep pairs use
all. The head is called inside the model's forward, so that its gradients are averaged over ranks like all others. It
exists only in training: `for_inference()` drops it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_rocket import AlignmentConfig

LayerPair = tuple[int, int]  # student layer, teacher layer

# Lower bound of vector norms in the cosine, so that a zero vector has a cosine of 0 and a finite gradient.
MIN_NORM = 1e-6


class ProjectorLinear(nn.Linear):
    """Linear layer with Xavier-uniform weights and zero biases. The model's `_init_weights` initializes this class."""


class NestedProjector(nn.Module):
    """Projector (LayerNorm, Linear, exact GELU, Linear) of which a call may use only the first hidden units."""

    def __init__(self, stream_width: int, hidden_width: int, target_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(stream_width)
        self.fc1 = ProjectorLinear(stream_width, hidden_width)
        self.fc2 = ProjectorLinear(hidden_width, target_width)

    def forward(self, stream: Tensor, width: int) -> Tensor:
        """Project (..., stream_width) to (..., target_width) with the first `width` hidden units.

        The norm is computed in float32, also if the weights are bfloat16.
        """
        normalized = F.layer_norm(
            stream.float(), self.norm.normalized_shape, self.norm.weight.float(), self.norm.bias.float(), self.norm.eps
        ).to(self.fc1.weight.dtype)
        hidden = F.gelu(F.linear(normalized, self.fc1.weight[:width], self.fc1.bias[:width]))
        return F.linear(hidden, self.fc2.weight[:, :width], self.fc2.bias)


class AlignmentHead(nn.Module):
    """Projectors and losses of all aligned layer pairs.

    Args:
        config: Layer pairs, kind of projector and widths.
        stream_width: Width of the policy's residual stream.
        depth: Number of blocks of the policy, to resolve negative layer numbers.
    """

    def __init__(self, config: AlignmentConfig, stream_width: int, depth: int):
        super().__init__()
        self.pairs = config.pairs(depth)
        self.widths = config.widths()  # number of hidden units that each pair uses
        count = 1 if config.projector == "shared" else len(self.pairs)
        self.projectors = nn.ModuleList(
            NestedProjector(stream_width, config.hidden_width, config.target_width) for _ in range(count)
        )

    @property
    def taps(self) -> list[int]:
        """The policy's layers that the head reads, resolved and without repetition."""
        return sorted({student for student, _ in self.pairs})

    def forward(self, taps: dict[int, Tensor], targets: dict[int, Tensor], camera_mask: Tensor) -> dict[str, Tensor]:
        """Return one loss per layer pair: 1 - cosine, averaged over tokens, then cameras, then the batch.

        Tokens without a teacher feature and missing cameras do not count. Pairs with the same projector and width are
        computed together.

        Args:
            taps: Residual streams (B, V, T, D) by student layer.
            targets: Teacher features (B, V, T, C) by teacher layer as written in the configuration, on the student's
                grid; zeros where a token has no feature.
            camera_mask: (B, V) bool, False where the camera is missing.

        Returns:
            Scalar losses named "alignment/STUDENT-TEACHER".
        """
        targets = {layer: target.detach().float() for layer, target in targets.items()}
        norms = {layer: torch.linalg.vector_norm(target, dim=-1) for layer, target in targets.items()}
        losses: dict[str, Tensor] = {}
        for projector, width, pairs in self.groups():
            projected = projector(stack_pairs([taps[student] for student, _ in pairs]), width).float()
            target = stack_pairs([targets[teacher] for _, teacher in pairs])  # (pairs, B, V, T, C)
            norm = stack_pairs([norms[teacher] for _, teacher in pairs])
            cosine = torch.linalg.vecdot(projected, target) / (clamped_norm(projected) * norm.clamp_min(MIN_NORM))
            loss = masked_mean(masked_mean(1 - cosine, norm > 0), camera_mask).mean(dim=-1)
            names = [f"alignment/{student}-{teacher}" for student, teacher in pairs]
            losses |= dict(zip(names, loss, strict=True))
        return losses

    def groups(self) -> list[tuple[nn.Module, int, list[LayerPair]]]:
        """Group the layer pairs by projector and width: (projector, width, pairs)."""
        grouped: dict[tuple[int, int], list[LayerPair]] = {}
        for index, (pair, width) in enumerate(zip(self.pairs, self.widths, strict=True)):
            projector = 0 if len(self.projectors) == 1 else index
            grouped.setdefault((projector, width), []).append(pair)
        return [(self.projectors[projector], width, pairs) for (projector, width), pairs in grouped.items()]


def stack_pairs(tensors: list[Tensor]) -> Tensor:
    """Stack tensors along a new first dimension; a single tensor becomes a view instead of a copy."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def clamped_norm(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1).clamp_min(MIN_NORM)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the last dimension of the values where `mask` is True; 0 where it is False everywhere."""
    mask = mask.to(values.dtype)
    return (values * mask).sum(-1) / mask.sum(-1).clamp_min(1)
