"""PCGrad (Yu et al. 2020, arXiv 2001.06782), for comparison: each loss's gradient without its conflicts with the
others.

The losses are the action loss and the loss of each layer pair, weighted as in the sum. This needs memory for one
gradient of all trainable weights per loss, and one backward pass per loss. The other losses are visited from shallow to
deep rather than in a random order, so that all ranks and resumed runs compute the same.
"""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rocket_hf.errors import UserError

from ..distributed.placement import gradients_are_sharded
from ..optimization import trainable_parameters
from ..recipe import VLARecipe
from .loss_gradients import loss_gradients, loss_terms


class GradientProjection:
    """Accumulator of the losses' gradients over the passes of a step, whose projected sum becomes the gradient."""

    def __init__(self, model: nn.Module, accelerator: Accelerator):
        self.weights = [weight for _, weight in trainable_parameters(model)]
        self.accelerator = accelerator
        self.gradients: Tensor | None = None  # (losses, elements of all weights), summed over the passes so far

    def backward(self, weighted_losses: Mapping[str, Tensor], passes: int) -> None:
        """Accumulate the gradients of one of the step's `passes`."""
        terms = [term / passes for term in loss_terms(weighted_losses).values()]
        gradients = loss_gradients(terms, self.weights)
        self.gradients = gradients if self.gradients is None else self.gradients + gradients

    def write_gradients(self) -> None:
        """Average the gradients over the ranks, project them, and store their sum as the weights' gradients."""
        assert self.gradients is not None
        combined = remove_conflicts(self.accelerator.reduce(self.gradients, "mean")).sum(dim=0)
        parts = combined.split([weight.numel() for weight in self.weights])
        for weight, part in zip(self.weights, parts, strict=True):
            weight.grad = part.view_as(weight)
        self.gradients = None


def remove_conflicts(gradients: Tensor) -> Tensor:
    """Subtract from each row of (L, P), one by one, its component along every row with which its dot product is
    negative."""
    squares = gradients.square().sum(dim=1).clamp_min(torch.finfo(gradients.dtype).tiny)
    projected = gradients.clone()
    for number, row in enumerate(projected):
        for other in range(len(gradients)):
            if other != number:
                conflict = (row @ gradients[other]).clamp_max(0) / squares[other]
                row -= conflict * gradients[other]
    return projected


def check_gradient_projection(recipe: VLARecipe) -> None:
    if recipe.optimizer.conflicts == "keep":
        return
    if recipe.alignment is None:
        raise UserError("optimizer.conflicts=project needs several losses, but this recipe has one: set it to keep")
    if recipe.run.compile:
        raise UserError("optimizer.conflicts=project runs several backward passes per forward pass, which compiled "
                         "layers do not support: set run.compile=false")  # fmt: skip
    if gradients_are_sharded():
        raise UserError("optimizer.conflicts=project needs unsharded gradients, but FSDP2 and DeepSpeed shard them: "
                         "set it to keep, or launch with DDP")  # fmt: skip
