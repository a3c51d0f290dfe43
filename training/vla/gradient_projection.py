"""PCGrad (Yu et al. 2020, arXiv 2001.06782): each loss's gradient without what goes against another's; to compare with.

The losses are the action's and each layer pair's, as they are weighted in the sum. Needs memory for one gradient of all
trained weights per loss, and one backward pass per loss. The others are taken from shallow to deep instead of in an
order drawn anew each time, so that all ranks and resumed runs do the same.
"""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rocket_hf.errors import UserError

from ..distributed.deepspeed_zero import zero_stage
from ..distributed.placement import sharded
from ..optimization import trained
from ..recipe import VLARecipe
from .loss_gradients import loss_gradients, named_losses


class Projection:
    """Gathers the losses' gradients over the passes of a step, and then leaves their projected sum in the weights."""

    def __init__(self, model: nn.Module, accelerator: Accelerator):
        self.weights = [weight for _, weight in trained(model)]
        self.accelerator = accelerator
        self.gradients: Tensor | None = None  # (losses, numbers of all weights), of the passes so far

    def add(self, losses: Mapping[str, Tensor], alignment_weight: float, passes: int) -> None:
        gradients = loss_gradients([term / passes for term in weighted_terms(losses, alignment_weight)], self.weights)
        self.gradients = gradients if self.gradients is None else self.gradients + gradients

    def settle(self) -> None:
        """Averages them over the ranks first."""
        assert self.gradients is not None
        combined = remove_conflicts(self.accelerator.reduce(self.gradients, "mean")).sum(dim=0)
        parts = combined.split([weight.numel() for weight in self.weights])
        for weight, part in zip(self.weights, parts, strict=True):
            weight.grad = part.view_as(weight)
        self.gradients = None


def weighted_terms(losses: Mapping[str, Tensor], alignment_weight: float) -> list[Tensor]:
    """What the sum of ROCKET's eq. 4 consists of: a term for each layer pair, and the action's."""
    *pairs, action = named_losses(losses).values()
    return [alignment_weight / len(pairs) * loss for loss in pairs] + [action]


def remove_conflicts(gradients: Tensor) -> Tensor:
    """Each row of (L, P) less its parts along the other rows that it has a negative product with, one by one."""
    squares = gradients.square().sum(dim=1).clamp_min(torch.finfo(gradients.dtype).tiny)
    projected = gradients.clone()
    for number, row in enumerate(projected):
        for other in range(len(gradients)):
            if other != number:
                against = (row @ gradients[other]).clamp_max(0) / squares[other]
                row -= against * gradients[other]
    return projected


def check_conflicts(recipe: VLARecipe) -> None:
    if recipe.optimizer.conflicts == "keep":
        return
    if recipe.alignment is None:
        raise UserError("optimizer.conflicts=project is about several losses, and this recipe has one: set it to keep")
    if recipe.run.compile:
        raise UserError("optimizer.conflicts=project runs several backward passes of one forward pass, which compiled "
                         "layers do not: set run.compile=false")  # fmt: skip
    if sharded() or zero_stage() is not None:
        raise UserError("optimizer.conflicts=project needs whole gradients, which FSDP2 and DeepSpeed spread over "
                         "ranks: set it to keep, or launch with DDP")  # fmt: skip
