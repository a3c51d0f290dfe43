"""What trains: each part of a policy frozen, by LoRA (PEFT) or in full; and the weights that come of it, merged.

LoRA's layers are put into the model in place, so the model stays a RocketForActionPrediction, and weights that train in
full are not copied.
"""

import warnings
from collections import Counter

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import HEAD, RocketForActionPrediction
from rocket_hf.modeling.policy_interface import resolve_layer

from ..distributed.placement import whole
from ..recipe import LoraSettings, PartsConfig, VLARecipe
from .parts import Part, part_of, weights_with_gradients
from .quantize import dequantized_weight

ADAPTER = "default"
BASE = ".base_layer"  # how PEFT calls the layer that it adapts
LORA_LAYERS = (nn.Linear, nn.Conv2d)


def make_trainable(model: RocketForActionPrediction, recipe: VLARecipe) -> None:
    """Freezes, adapts and unfreezes as the recipe says; trained weights become float32."""
    check_parts(model, recipe.parts)
    reached = weights_with_gradients(model.config)
    full = [name for name, _ in model.named_parameters() if trains(recipe.parts, name) == "full" and name in reached]
    lora = lora_configs(model, recipe.parts, recipe.lora, reached)
    model.requires_grad_(False)
    with warnings.catch_warnings():  # the second part of one adapter is no second adapter
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        for config in lora:
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name in full:
        model.get_parameter(name).requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def trains(parts: PartsConfig, name: str) -> str:
    part = part_of(name)
    return "full" if part == "projector" else getattr(parts, part)


def lora_configs(
    model: RocketForActionPrediction, parts: PartsConfig, settings: LoraSettings, reached: set[str]
) -> list[LoraConfig]:
    """On every linear layer and convolution of the parts that train so, but those that no loss reaches."""
    targets: dict[str, list[str]] = {}  # by how they begin
    for name, module in model.named_modules():
        if isinstance(module, LORA_LAYERS) and trains(parts, name) == "lora" and f"{name}.weight" in reached:
            of_matrices_alone = settings.init in ("pissa", "olora") and isinstance(module, nn.Conv2d)
            targets.setdefault("gaussian" if of_matrices_alone else settings.init, []).append(name)
    return [
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            init_lora_weights=True if init == "kaiming" else init,
            target_modules=names,
        )
        for init, names in targets.items()
    ]


def check_parts(model: RocketForActionPrediction, parts: PartsConfig) -> None:
    there = sorted({part_of(name) for name, _ in model.named_parameters()} - {"projector"})
    if all(getattr(parts, part) == "frozen" for part in there):
        raise UserError(
            f"every part of the policy is frozen: set one of parts.{', parts.'.join(there)} to lora or full"
        )
    if model.new_layers and parts.heads != "full":
        raise UserError(
            f"the robot needs new layers, which parts.heads={parts.heads} would not train: set it to full "
            f"({', '.join(model.new_layers)})"
        )
    if model.config.alignment is not None and parts.vision == "frozen":
        layers, depth = model.config.alignment.student_layers, model.config.policy_config.depth
        deep = any(resolve_layer(layer, depth) > 0 for layer in layers)  # 0 are the embeddings, before any block
        if parts.language == "frozen" or not deep:
            raise UserError(
                f"alignment would train nothing that it taps, student layers {list(layers)}: set parts.vision"
                f"{' or parts.language' if deep else ''} to lora or full, or alignment to null"
            )


def count_trainable_by_part(model: nn.Module) -> dict[Part, tuple[int, int]]:
    """For each part: the number of weights that train, and of all; those of LoRA count with their part."""
    training: Counter[Part] = Counter()
    every: Counter[Part] = Counter()
    for name, parameter in model.named_parameters():
        every[part_of(name)] += parameter.numel()
        training[part_of(name)] += parameter.numel() * parameter.requires_grad
    return {part: (training[part], every[part]) for part in every}


# The trained policy


@torch.no_grad()
def merge_lora_weights(model: RocketForActionPrediction) -> dict[str, Tensor]:
    """The weights of the policy by their own names, LoRA's product added, without the alignment head; on the CPU. All
    ranks call it."""
    weights = {}
    for name, parameter in model.named_parameters():
        if not name.startswith(HEAD) and ".lora_" not in name:
            weights[name.replace(BASE, "")] = whole(parameter)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            weight = whole(dequantized_weight(module.base_layer))
            down, up = (whole(part[ADAPTER].weight).float() for part in (module.lora_A, module.lora_B))
            product = (up.flatten(1) @ down.flatten(1)).view_as(weight)  # a convolution's is one of flat patches
            weights[f"{name}.weight"] = (weight.float() + module.scaling[ADAPTER] * product).to(weight.dtype)
    return weights


def policy_of(config: RocketConfig, weights: dict[str, Tensor]) -> RocketForActionPrediction:
    """A policy without an alignment head that holds these weights."""
    config = type(config).from_dict(config.to_dict(), alignment=None)
    with torch.device("meta"):
        policy = RocketForActionPrediction(config)
    policy.load_state_dict(weights, strict=True, assign=True)
    return policy.eval()
