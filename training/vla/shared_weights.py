"""The weights that all losses of a run reach, on which the agreement of their gradients is measured."""

from torch import nn

from rocket_hf.errors import UserError
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction

from ..distributed.placement import gradients_are_sharded
from ..optimization import trainable_parameters
from ..recipe import VLARecipe
from .parts import part_of

NamedWeights = dict[str, nn.Parameter]


def shared_weights(policy: RocketForActionPrediction, prefix: str | None) -> NamedWeights:
    """Return the trainable weights whose names begin with `prefix`.

    Without a prefix, return those of the language model's first tapped block: every layer pair and the action loss
    reach it, and no later weight is common to all of them.
    """
    assert policy.alignment_head is not None
    first = policy.alignment_head.taps[0]
    if prefix is None and first == 0:
        raise UserError(
            "the first aligned layer is the embeddings, which belong to no block: set the weights to compare the "
            "gradients of, for instance policy.vision_tower (analysis.parameters, or --parameters)"
        )
    prefix, part = (prefix, None) if prefix is not None else (f"policy.layers.{first - 1}.", "language")
    trainable = trainable_parameters(policy)
    weights = {
        name: weight
        for name, weight in trainable
        if name.startswith(prefix) and (part is None or part_of(name) == part)
    }
    if not weights:
        raise UserError(
            f"no trainable weight has a name that begins with {prefix}: set the weights to compare the gradients of, "
            f"for instance {trainable[0][0]} (analysis.parameters, or --parameters)"
        )
    return weights


def check_gradient_agreement(recipe: VLARecipe, policy: RocketForActionPrediction) -> None:
    """Raise a UserError if the recipe asks for a measurement that is impossible."""
    if not recipe.analysis.gradient_agreement_every:
        return
    if gradients_are_sharded():
        raise UserError(
            "analysis.gradient_agreement_every needs unsharded gradients, but FSDP2 and DeepSpeed shard them: set it "
            "to 0, or launch with DDP"
        )
    shared_weights(policy, recipe.analysis.parameters)
