"""Trainable weights: each part of a policy frozen, with LoRA (PEFT), or in full; and the merged weights after training.

LoRA layers are injected into the model in place, so it stays a RocketForActionPrediction, and weights that train in
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
from rocket_hf.modeling.modeling_rocket import ALIGNMENT_HEAD_PREFIX, RocketForActionPrediction
from rocket_hf.modeling.policy_interface import resolve_layer

from ..distributed.tensor_storage import gather_tensor
from ..recipe import LoraSettings, PartsConfig, TrainingMode, VLARecipe
from .parts import Part, part_of, weights_with_gradients
from .quantize import dequantized_weight

ADAPTER = "default"
BASE_LAYER = ".base_layer"  # PEFT's name for the layer that it adapts
LORA_LAYERS = (nn.Linear, nn.Conv2d)


def make_trainable(model: RocketForActionPrediction, recipe: VLARecipe) -> None:
    """Freeze, adapt and unfreeze weights according to the recipe. Trainable weights become float32."""
    check_parts(model, recipe.parts)
    reached = weights_with_gradients(model.config)
    full = [
        name for name, _ in model.named_parameters() if training_mode(recipe.parts, name) == "full" and name in reached
    ]
    configs = lora_configs(model, recipe.parts, recipe.lora, reached)
    model.requires_grad_(False)
    with warnings.catch_warnings():  # PEFT warns of a second adapter, but this is the second half of one adapter.
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        for config in configs:
            inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name in full:
        model.get_parameter(name).requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def training_mode(parts: PartsConfig, name: str) -> TrainingMode:
    part = part_of(name)
    return "full" if part == "projector" else getattr(parts, part)


def lora_configs(
    model: RocketForActionPrediction, parts: PartsConfig, settings: LoraSettings, reached: set[str]
) -> list[LoraConfig]:
    """Return PEFT configurations for all linear layers and convolutions of the parts that train with LoRA.

    Layers that no loss reaches are left out. There is one configuration per initialization.
    """
    modules_by_init: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LORA_LAYERS) and training_mode(parts, name) == "lora" and f"{name}.weight" in reached:
            # PiSSA and OLoRA decompose matrices, so they cannot initialize the adapter of a convolution.
            needs_matrix = settings.init in ("pissa", "olora") and isinstance(module, nn.Conv2d)
            modules_by_init.setdefault("gaussian" if needs_matrix else settings.init, []).append(name)
    return [
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            init_lora_weights=True if init == "kaiming" else init,
            target_modules=names,
        )
        for init, names in modules_by_init.items()
    ]


def check_parts(model: RocketForActionPrediction, parts: PartsConfig) -> None:
    """Raise a UserError if nothing trains, or if new layers or aligned layers do not train."""
    existing = sorted({part_of(name) for name, _ in model.named_parameters()} - {"projector"})
    if all(getattr(parts, part) == "frozen" for part in existing):
        raise UserError(
            f"every part of the policy is frozen: set one of parts.{', parts.'.join(existing)} to lora or full"
        )
    if model.new_layers and parts.heads != "full":
        raise UserError(
            f"the robot needs new layers ({', '.join(model.new_layers)}), which parts.heads={parts.heads} does not "
            "train: set parts.heads=full"
        )
    if model.config.alignment is not None and parts.vision == "frozen":
        layers, depth = model.config.alignment.student_layers, model.config.policy_config.depth
        has_block = any(resolve_layer(layer, depth) > 0 for layer in layers)  # Layer 0 is the embeddings.
        if parts.language == "frozen" or not has_block:
            raise UserError(
                f"the alignment of student layers {list(layers)} would train no weight before these layers: set "
                f"parts.vision{' or parts.language' if has_block else ''} to lora or full, or set alignment=null"
            )


def count_trainable_by_part(model: nn.Module) -> dict[Part, tuple[int, int]]:
    """Return the number of trainable weights and of all weights for each part; LoRA weights belong to their part."""
    trainable: Counter[Part] = Counter()
    total: Counter[Part] = Counter()
    for name, parameter in model.named_parameters():
        total[part_of(name)] += parameter.numel()
        trainable[part_of(name)] += parameter.numel() * parameter.requires_grad
    return {part: (trainable[part], total[part]) for part in total}


# The trained policy


@torch.no_grad()
def merge_lora_weights(model: RocketForActionPrediction) -> dict[str, Tensor]:
    """Return the weights of the policy without the alignment head, with LoRA merged, on the CPU. All ranks must call
    this."""
    weights = {}
    for name, parameter in model.named_parameters():
        if not name.startswith(ALIGNMENT_HEAD_PREFIX) and ".lora_" not in name:
            weights[name.replace(BASE_LAYER, "")] = gather_tensor(parameter)
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            weight = gather_tensor(dequantized_weight(module.base_layer))
            down, up = (gather_tensor(part[ADAPTER].weight).float() for part in (module.lora_A, module.lora_B))
            product = (up.flatten(1) @ down.flatten(1)).view_as(weight)  # A convolution is a matrix of flat patches.
            weights[f"{name}.weight"] = (weight.float() + module.scaling[ADAPTER] * product).to(weight.dtype)
    return weights


def policy_from_weights(config: RocketConfig, weights: dict[str, Tensor]) -> RocketForActionPrediction:
    """Build a policy without an alignment head from weights, which are not copied."""
    config = type(config).from_dict(config.to_dict(), alignment=None)
    with torch.device("meta"):
        policy = RocketForActionPrediction(config)
    policy.load_state_dict(weights, strict=True, assign=True)
    return policy.eval()
