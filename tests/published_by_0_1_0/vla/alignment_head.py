"""The alignment head: several layers of a policy's residual stream against several layers of a 3D vision model.

ROCKET (arXiv 2602.17951): all pairs share ONE projector, so that the gradients they send into the policy add up
instead of cancelling; shallow pairs use only its first hidden units (nested, Matryoshka widths), deep pairs all.
The head is called inside the model's forward, so that its gradients are averaged over ranks like all others, and
exists only in training: `for_inference()` drops it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_rocket import AlignmentConfig

Pair = tuple[int, int]  # student layer, teacher layer

# Vectors shorter than this count as this long, so that a zero vector has a cosine of 0 and a finite gradient.
SHORTEST = 1e-6


class ProjectorLinear(nn.Linear):
    """A Linear with Xavier-uniform weights and zero biases: the model's `_init_weights` knows it by its class."""


class NestedProjector(nn.Module):
    """LayerNorm, Linear, exact GELU, Linear; `width` says how many of the hidden units, from the first, take part."""

    def __init__(self, stream_width: int, hidden_width: int, target_width: int):
        super().__init__()
        self.norm = nn.LayerNorm(stream_width)
        self.fc1 = ProjectorLinear(stream_width, hidden_width)
        self.fc2 = ProjectorLinear(hidden_width, target_width)

    def forward(self, stream: Tensor, width: int) -> Tensor:
        normalised = F.layer_norm(
            stream.float(), self.norm.normalized_shape, self.norm.weight.float(), self.norm.bias.float(), self.norm.eps
        ).to(self.fc1.weight.dtype)
        hidden = F.gelu(F.linear(normalised, self.fc1.weight[:width], self.fc1.bias[:width]))
        return F.linear(hidden, self.fc2.weight[:, :width], self.fc2.bias)


class AlignmentHead(nn.Module):
    def __init__(self, config: AlignmentConfig, stream_width: int, depth: int):
        super().__init__()
        self.pairs = config.pairs(depth)
        self.widths = config.widths()
        count = 1 if config.projector == "shared" else len(self.pairs)
        self.projectors = nn.ModuleList(
            NestedProjector(stream_width, config.hidden_width, config.target_width) for _ in range(count)
        )

    @property
    def taps(self) -> list[int]:
        """The policy's layers that the head reads, resolved and without repetition."""
        return sorted({student for student, _ in self.pairs})

    def forward(self, taps: dict[int, Tensor], targets: dict[int, Tensor], camera_mask: Tensor) -> dict[str, Tensor]:
        """One loss per pair: 1 - cosine, averaged over tokens, over the cameras that are present, over the batch.

        Taps (B, V, T, D) by student layer; targets (B, V, T, C) by teacher layer as written in the configuration,
        already on the student's grid, zeros where a token has none; camera_mask (B, V). Pairs of one projector and
        width run as one.
        """
        targets = {layer: target.detach().float() for layer, target in targets.items()}
        lengths = {layer: torch.linalg.vector_norm(target, dim=-1) for layer, target in targets.items()}
        losses: dict[str, Tensor] = {}
        for projector, width, pairs in self.groups():
            projected = projector(joined([taps[student] for student, _ in pairs]), width).float()
            target = joined([targets[teacher] for _, teacher in pairs])  # (pairs, B, V, T, C)
            length = joined([lengths[teacher] for _, teacher in pairs])
            cosine = torch.linalg.vecdot(projected, target) / (vector_length(projected) * length.clamp_min(SHORTEST))
            loss = mean_where(mean_where(1 - cosine, length > 0), camera_mask).mean(dim=-1)
            names = [f"alignment/{student}-{teacher}" for student, teacher in pairs]
            losses |= dict(zip(names, loss, strict=True))
        return losses

    def groups(self) -> list[tuple[nn.Module, int, list[Pair]]]:
        """The pairs that can be computed together: those of one projector and one width."""
        grouped: dict[tuple[int, int], list[Pair]] = {}
        for index, (pair, width) in enumerate(zip(self.pairs, self.widths, strict=True)):
            projector = 0 if len(self.projectors) == 1 else index
            grouped.setdefault((projector, width), []).append(pair)
        return [(self.projectors[projector], width, pairs) for (projector, width), pairs in grouped.items()]


def joined(tensors: list[Tensor]) -> Tensor:
    """With a leading dimension of pairs; a view where there is a single one."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def vector_length(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1).clamp_min(SHORTEST)


def mean_where(values: Tensor, there: Tensor) -> Tensor:
    """The mean over the last dimension of what is there; 0 where nothing is."""
    there = there.to(values.dtype)
    return (values * there).sum(-1) / there.sum(-1).clamp_min(1)
