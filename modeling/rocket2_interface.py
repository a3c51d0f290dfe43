"""What ROCKET-2 reads, keeps and gives.

Shapes: B episodes or environments, T steps, G goals of a chunk, F factors of an action, P patches of a picture,
N blocks, M tokens of memory, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .errors import UserError
from .strict_config import nearest

NOBODY_SAYS = -100  # what cross-entropies pass over in torch

# Weight of each loss in `Rocket2Output.loss`, as in the ROCKET-2 publication (arXiv 2503.02505).
LOSS_WEIGHTS = {"action": 0.01, "visibility": 0.01, "point": 0.1, "box": 0.1}


class Rocket2Batch(TypedDict, total=False):
    """Chunks of episodes, for training. A goal lasts, so a chunk has a few of them and each step names its own."""

    images: Tensor  # (B, T, 3, H, W) uint8, or float in [0, 1]
    goal_images: Tensor  # (B, G, 3, H, W)
    goal_masks: Tensor  # (B, G, H, W), 1 on the object
    goal_interactions: Tensor  # (B, G), -1 for none
    goal_index: Tensor  # (B, T)
    previous_actions: Tensor  # (B, T, F), what was done before the picture was taken
    previous_hidden: Tensor  # (B, T) bool, which of them training hides: drawn from the generator unless given
    actions: Tensor  # (B, T, F), what is to be done; NOBODY_SAYS where nobody tells, which costs nothing
    is_pad: Tensor  # (B, T) bool, True on steps after the end of the episode
    visibility: Tensor  # (B, T) bool, whether the object is in the agent's own view
    point: Tensor  # (B, T, 2), its middle (y, x) as shares of the picture; read where it is visible
    box: Tensor  # (B, T, 4), (x0, y0, x1, y1) likewise


class Memory(NamedTuple):
    """What the temporal transformer still sees of the past, oldest first."""

    valid: Tensor  # (B, M) bool
    keys: Tensor  # (N, B, M, D)
    values: Tensor  # (N, B, M, D)

    def without(self, environments: Tensor) -> "Memory":
        """With nothing left of some environments, (B,) bool."""
        return self._replace(valid=self.valid & ~environments[:, None])


@dataclass
class Rocket2Output(ModelOutput):
    """Output of `Rocket2ForActionPrediction.forward`.

    Attributes:
        loss: Scalar to minimize: the sum of all losses, each times its weight in `LOSS_WEIGHTS`; None if the batch has
            neither actions nor visibility.
        losses: Every loss by name: "action/FACTOR" for each factor of the action, "auxiliary/HEAD" for each head.
        memory: Memory for the next chunk of the same episodes, without gradients.
        logits: Scores of the choices of each action factor, (B, T, choices).
        auxiliary: Raw outputs of each auxiliary head, (B, T, values).
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    memory: Memory | None = None
    logits: dict[str, Tensor] | None = None
    auxiliary: dict[str, Tensor] | None = None


def weighted_rocket2_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float] = LOSS_WEIGHTS) -> Tensor | None:
    """Return the weighted sum of the losses, or None if there are none.

    All factors of the action share the weight "action"; each auxiliary head has the weight of its own name.
    """
    if not losses:
        return None
    names = [name.partition("/")[::2] for name in losses]
    factors = [weights["action"] if kind == "action" else weights[head] for kind, head in names]
    return torch.stack([factor * loss for factor, loss in zip(factors, losses.values(), strict=True)]).sum()


@dataclass(frozen=True)
class Goal:
    """A mask in any view: of the agent, of another camera, of another episode. For all environments or for some."""

    images: Tensor  # (n, 3, H, W) uint8, or float in [0, 1]
    masks: Tensor  # (n, H, W)
    interactions: Tensor  # (n,), -1 for none
    environments: Tensor | None = None  # (B,) bool with n times True: whose goals these are


@dataclass(frozen=True)
class PolicyState:
    """All that a policy remembers between two steps. Steps return a new one and leave the old one as it was."""

    memory: Memory  # with guidance of 2 B: the second half never sees a goal
    goals: Tensor  # (B, P, D)
    no_goal: Tensor  # (1, P, D)
    interactions: Tensor  # (B,)
    previous_actions: Tensor  # (B, F)
    guidance: float
    seen: dict[str, Tensor] = field(default_factory=dict)  # what the auxiliary heads said at the last step: (B, ...)


def check_goal_batch(batch: Mapping[str, Any], required: set[str], shapes: dict[str, tuple[int | None, ...]]) -> None:
    """Refuses unknown and missing keys and wrong shapes by name; None in a shape is any size."""
    known = Rocket2Batch.__annotations__
    for key in batch:
        if key not in known:
            raise UserError(f"a batch has no key {key!r}: {nearest(key, known)}")
    if missing := sorted(required - batch.keys()):
        present = ", ".join(map(repr, sorted(batch)))
        raise UserError(f"the batch lacks {', '.join(map(repr, missing))}; it has {present}")
    for key in batch:
        check_shape(f"batch[{key!r}]", batch[key], shapes[key])


def check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    found = tuple(tensor.shape)
    if len(found) != len(shape) or any(wanted not in (None, size) for wanted, size in zip(shape, found, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise UserError(f"{name} must be ({wanted}), got {found}")
