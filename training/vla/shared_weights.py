"""The weights that all losses of a run reach, about which their gradients may agree or not."""

from torch import nn

from rocket_hf.errors import UserError
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction

from ..distributed.deepspeed_zero import zero_stage
from ..distributed.placement import sharded
from ..optimization import trained
from ..recipe import VLARecipe
from .parts import part_of

Weights = dict[str, nn.Parameter]


def shared_weights(policy: RocketForActionPrediction, beginning: str | None) -> Weights:
    """Those that train and whose names so begin. By default of the first tapped block of the language model: each pair
    and the action reach it, and nothing that they have in common lies behind it."""
    assert policy.alignment_head is not None
    first = policy.alignment_head.taps[0]
    if beginning is None and first == 0:
        raise UserError(
            "the first aligned layer are the embeddings, which no block makes: say on which weights the losses are to "
            "be compared, for instance policy.vision_tower"
        )
    beginning, part = (beginning, None) if beginning is not None else (f"policy.layers.{first - 1}.", "language")
    chosen = {
        name: weight
        for name, weight in trained(policy)
        if name.startswith(beginning) and (part is None or part_of(name) == part)
    }
    if not chosen:
        raise UserError(
            f"no trained weight has a name that begins with {beginning}: say on which weights the losses are to be "
            f"compared, for instance {trained(policy)[0][0]}"
        )
    return chosen


def check_agreement(recipe: VLARecipe, policy: RocketForActionPrediction) -> None:
    """What cannot be measured is said before the run begins."""
    if not recipe.analysis.gradient_agreement_every:
        return
    if sharded() or zero_stage() is not None:
        raise UserError(
            "analysis.gradient_agreement_every compares gradients of whole weights, which FSDP2 and DeepSpeed spread "
            "over ranks: set it to 0, or launch with DDP"
        )
    shared_weights(policy, recipe.analysis.parameters)
