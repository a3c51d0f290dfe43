"""Interface of ROCKET-2: batches, memory, outputs, goals and the state between steps.

Shapes: B episodes or environments, T steps, G goals of a chunk, F action factors, P patches of an image, N blocks, M
tokens of memory, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor
from transformers.utils import ModelOutput

IGNORE_INDEX = -100  # action without a demonstrated choice; torch's cross-entropy ignores it by default

# Weight of each loss in `Rocket2Output.loss`, as in the ROCKET-2 publication (arXiv 2503.02505).
LOSS_WEIGHTS = {"action": 0.01, "visibility": 0.01, "point": 0.1, "box": 0.1}


class Rocket2Batch(TypedDict, total=False):
    """Chunks of episodes for training.

    A goal lasts for many steps, so a chunk has a few goals, and each step has the index of its goal.
    """

    images: Tensor  # (B, T, 3, H, W) uint8, or float in [0, 1]
    goal_images: Tensor  # (B, G, 3, H, W)
    goal_masks: Tensor  # (B, G, H, W), 1 on the goal object
    goal_interactions: Tensor  # (B, G), -1 for none
    goal_index: Tensor  # (B, T)
    previous_actions: Tensor  # (B, T, F), action before the image was taken
    previous_hidden: Tensor  # (B, T) bool, previous actions to hide in training; drawn from the generator if missing
    actions: Tensor  # (B, T, F), demonstrated choices; IGNORE_INDEX for none
    is_pad: Tensor  # (B, T) bool, True on steps after the end of the episode
    visibility: Tensor  # (B, T) bool, whether the goal object is in the agent's view
    point: Tensor  # (B, T, 2), center (y, x) of the object as fractions of the image; used where it is visible
    box: Tensor  # (B, T, 4), bounding box (x0, y0, x1, y1) as fractions of the image; used where it is visible


class Memory(NamedTuple):
    """Keys and values of past tokens that the temporal transformer still attends to, oldest first."""

    valid: Tensor  # (B, M) bool
    keys: Tensor  # (N, B, M, D)
    values: Tensor  # (N, B, M, D)

    def clear(self, environments: Tensor) -> "Memory":
        """Return the memory without the tokens of some environments, (B,) bool."""
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
    """Goal object, marked by a mask in an image from any camera or episode, for all environments or some of them.

    Args:
        images: (n, 3, H, W) uint8, or float in [0, 1].
        masks: (n, H, W), 1 on the goal object.
        interactions: (n,), what to do with the object, as in `INTERACTIONS`; -1 for none.
        environments: (B,) bool with n times True, the environments that get these goals; None for all.
    """

    images: Tensor
    masks: Tensor
    interactions: Tensor
    environments: Tensor | None = None


@dataclass(frozen=True)
class Rocket2State:
    """Everything that a policy keeps between two steps. Each step returns a new state; the old one stays valid."""

    memory: Memory  # with guidance of 2 B environments, of which the second half has no goals
    goals: Tensor  # (B, P, D), encoded
    no_goal: Tensor  # (1, P, D), encoded
    interactions: Tensor  # (B,)
    previous_actions: Tensor  # (B, F)
    guidance: float
    # Predictions of the auxiliary heads at the last step: visibility (B,), point (B, 2), box (B, 4).
    seen: dict[str, Tensor] = field(default_factory=dict)
