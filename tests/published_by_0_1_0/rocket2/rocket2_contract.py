"""What ROCKET-2 reads, keeps and gives.

Shapes: B episodes or environments, T steps, G goals of a chunk, F factors of an action, P patches of a picture,
N blocks, M tokens of memory, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

from torch import Tensor

from .strict_config import nearest

NOBODY_SAYS = -100  # what cross-entropies pass over in torch


class GoalBatch(TypedDict, total=False):
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


class Rocket2Output(NamedTuple):
    losses: dict[str, Tensor]  # scalars by name: "action/...", "auxiliary/..."
    memory: Memory  # for the chunks that follow, without gradients
    logits: dict[str, Tensor]  # by factor of the action, (B, T, choices)
    auxiliary: dict[str, Tensor]  # by head, (B, T, numbers)


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
    known = GoalBatch.__annotations__
    for key in batch:
        if key not in known:
            raise ValueError(f"a batch has no key {key!r}: {nearest(key, known)}")
    if missing := sorted(required - batch.keys()):
        present = ", ".join(map(repr, sorted(batch)))
        raise ValueError(f"the batch lacks {', '.join(map(repr, missing))}; it has {present}")
    for key in batch:
        check_shape(f"batch[{key!r}]", batch[key], shapes[key])


def check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    found = tuple(tensor.shape)
    if len(found) != len(shape) or any(wanted not in (None, size) for wanted, size in zip(shape, found, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must be ({wanted}), got {found}")
