"""The parts of a policy, and the weights that its losses reach.

The weights that a loss reaches are found by a backward pass of a copy without data (torch's meta device), so the result
holds for every backbone and every choice of layers. All other weights stay frozen, so no rank waits for their
gradients.
"""

from typing import Literal

import torch

from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import ALIGNMENT_HEAD_PREFIX, RocketForActionPrediction

Part = Literal["vision", "language", "expert", "heads", "projector"]

# Part of each submodule of `policy`. In `layers`, the half named "expert" belongs to the expert instead.
PART_OF_MODULE: dict[str, Part] = {
    "vision_tower": "vision",
    "image_projection": "vision",
    "projector": "vision",
    "embed_tokens": "language",
    "layers": "language",
    "norm": "language",
    "lm_head": "language",
    "expert_norm": "expert",
    "state_projection": "heads",
    "state_projector": "heads",
    "action_in": "heads",
    "action_out": "heads",
    "action_head": "heads",
    "time_mlp_in": "heads",
    "time_mlp_out": "heads",
}


def part_of(name: str) -> Part:
    """Return the part that a weight or module belongs to, by its name; "projector" is the alignment head."""
    if name.startswith(ALIGNMENT_HEAD_PREFIX):
        return "projector"
    _, module, *rest = name.split(".")
    return "expert" if module == "layers" and "expert" in rest[:2] else PART_OF_MODULE[module]


def weights_with_gradients(config: RocketConfig) -> set[str]:
    """Return the names of the weights that get a gradient from any loss of a policy with this configuration."""
    with torch.device("meta"):
        model = RocketForActionPrediction(config).train()
    batch = {key: value.to("meta") for key, value in config.fake_batch(batch_size=1).items()}  # type: ignore[attr-defined]
    targets = None
    if config.alignment is not None:
        targets = {layer: target.to("meta") for layer, target in config.fake_targets(batch_size=1).items()}
    torch.stack(list(model(**batch, targets=targets).losses.values())).sum().backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}
