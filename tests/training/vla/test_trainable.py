"""Trainable weights by name and count, their gradients, and merged LoRA weights."""

from collections import Counter

import pytest
import torch
from torch import nn

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_openvla import OpenVLAPolicyConfig
from rocket_hf.modeling.configuration_rocket import AlignmentConfig, RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.tiny import TINY_POLICIES, tiny_config
from rocket_hf.training.optimization import create_optimizer, trainable_parameters
from rocket_hf.training.recipe import LoraSettings, OptimizerConfig, PartsConfig, VLARecipe
from rocket_hf.training.recipe_files import read_vla_recipe
from rocket_hf.training.vla.parts import part_of
from rocket_hf.training.vla.resources import alignment_config
from rocket_hf.training.vla.trainable import (
    count_trainable_by_part,
    make_trainable,
    merge_lora_weights,
    policy_from_weights,
)

RANK = 2
LORA = LoraSettings(rank=RANK)
ALL_FULL = PartsConfig("full", "full", "full", "full")
PARTS = {
    "default": PartsConfig(),
    "all": ALL_FULL,
    "frozen vision": PartsConfig("frozen", "lora", "full", "frozen"),
}
# Modules of `policy` that belong to each part, in all families.
VISION = {"vision_tower", "image_projection", "projector"}
LANGUAGE = {"embed_tokens", "norm", "lm_head"}
EXPERT = {"expert_norm"}


def trainable_model(family: str, parts: PartsConfig, lora: LoraSettings = LORA, **changes) -> RocketForActionPrediction:
    torch.manual_seed(0)
    model = RocketForActionPrediction(tiny_config(family, **changes)).train()
    make_trainable(model, VLARecipe(parts=parts, lora=lora))
    return model


def expected_mode(parts: PartsConfig, name: str) -> str:
    """Return the training mode of a weight by the names of its modules."""
    first, *rest = name.split(".")[1:]
    if name.startswith("alignment_head."):
        return "full"
    if first in VISION:
        return parts.vision
    if first in EXPERT or (first == "layers" and any(word == "expert" for word in rest)):
        return parts.expert
    return parts.language if first in LANGUAGE or first == "layers" else parts.heads


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("family", TINY_POLICIES)
def test_exactly_the_weights_of_trained_parts_train(family, parts):
    model = trainable_model(family, parts)
    counted = require_trainable(model, RocketForActionPrediction(tiny_config(family)), parts)
    assert sum(count for count, _ in count_trainable_by_part(model).values()) == counted
    names = {name for name, _ in trainable_parameters(model)}
    assert weights_changed_by_training(model) == names


def require_trainable(model: nn.Module, original: nn.Module, parts: PartsConfig) -> int:
    """Check the trainable weights by name and number; return their number."""
    weights = dict(original.named_parameters())
    adapted = {
        f"{name}.weight": module.weight
        for name, module in original.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and expected_mode(parts, f"{name}.weight") == "lora"
    }
    pairs = {name.removesuffix("weight") + f"lora_{half}.default.weight" for name in adapted for half in "AB"}
    assert {name for name, _ in trainable_parameters(model)} == {
        name for name in weights if expected_mode(parts, name) == "full"
    } | pairs
    counted = sum(weight.numel() for name, weight in weights.items() if expected_mode(parts, name) == "full")
    counted += sum(RANK * (len(weight) + weight[0].numel()) for weight in adapted.values())  # output and input width
    assert sum(weight.numel() for _, weight in trainable_parameters(model)) == counted
    return counted


def weights_changed_by_training(model: nn.Module) -> set[str]:
    """Return the weights that two steps change, after checking that each trainable weight gets a gradient.

    One step is not enough: LoRA's A matrix changes only after its B matrix is no longer zero.
    """
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = create_optimizer(model, OptimizerConfig(lr=0.1), part_of)
    for seed in range(2):
        targets = model.config.fake_targets(seed=seed) if model.config.alignment is not None else None
        losses = model(**model.config.fake_batch(seed=seed), targets=targets).losses
        torch.stack(list(losses.values())).sum().backward()
        assert [name for name, weight in trainable_parameters(model) if weight.grad is None] == []
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}


@pytest.mark.parametrize("family", TINY_POLICIES)
def test_every_trainable_weight_gets_a_gradient_without_alignment(family):
    model = trainable_model(family, PartsConfig(), alignment=None)
    assert weights_changed_by_training(model) <= {name for name, _ in trainable_parameters(model)}


def test_openvla_oft_recipe_has_the_published_number_of_trainable_weights():
    """The paper counts 79,953,920 LoRA weights in the language model and 29,110,016 in the vision part, of which
    1,094,656 are in blocks whose outputs are not used."""
    recipe = read_vla_recipe("rocket-openvla-oft")
    config = RocketConfig(
        policy_config=OpenVLAPolicyConfig(variant="oft"), cameras=["image", "wrist"], chunk_size=8,
        alignment=alignment_config(recipe, 2048),
    )  # fmt: skip
    with torch.device("meta"):
        model = RocketForActionPrediction(config)
    make_trainable(model, recipe)
    counts: Counter[str] = Counter()
    for name, weight in trainable_parameters(model):
        module = name.split(".")[1] if name.startswith("policy.") else "alignment"
        kind = "lora" if ".lora_" in name else "full"
        counts[{"layers": "language", "vision_tower": "vision", "projector": "vision"}.get(module, module), kind] += (
            weight.numel()
        )
    heads = counts.pop(("action_head", "full")) + counts.pop(("state_projector", "full"))
    assert heads == 167_936_007
    assert counts == {
        ("language", "lora"): 79_953_920, ("vision", "lora"): 29_110_016 - 1_094_656,
        ("alignment", "full"): 12_595_200,
    }  # fmt: skip


def test_weights_that_no_loss_reaches_stay_frozen():
    """Without alignment of the last layer, the language model's last block is used only by the expert's attention."""
    model = trainable_model("pi0", ALL_FULL, alignment=None)
    frozen = {name.removeprefix("policy.") for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen and all(name.startswith("layers.2.") or name == "norm.weight" for name in frozen), frozen
    assert not any("expert" in name.split(".") for name in frozen)


def with_random_adapters(family: str, init: str) -> RocketForActionPrediction:
    model = trainable_model(family, PartsConfig(), LoraSettings(rank=RANK, alpha=3, init=init))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in trainable_parameters(model):
            if ".lora_" in name:
                weight.add_(torch.randn(weight.shape, generator=draw) / 10)
    return model.eval()


@pytest.mark.parametrize(
    ("family", "init"),
    [(family, "gaussian") for family in ("pi0", "pi05", "smolvla")]
    + [("openvla-oft", init) for init in ("gaussian", "kaiming", "pissa", "olora")],
)
def test_policy_with_merged_weights_predicts_the_same_actions(family, init):
    model = with_random_adapters(family, init)
    adapted = {name for name, _ in model.named_modules() if name.endswith(".base_layer")}
    assert any(isinstance(model.get_submodule(name), nn.Conv2d) for name in adapted)
    policy = policy_from_weights(model.config, merge_lora_weights(model))
    batch = model.config.fake_batch()
    inputs = {key: value for key, value in batch.items() if key not in ("actions", "action_is_pad")}
    generators = [torch.Generator().manual_seed(0) for _ in range(3)]
    expected = model.predict_action_chunk(**inputs, generator=generators[0])
    torch.testing.assert_close(
        policy.predict_action_chunk(**inputs, generator=generators[1]), expected, atol=1e-5, rtol=0
    )
    original = RocketForActionPrediction(tiny_config(family))
    assert policy.state_dict().keys() == {name for name in original.state_dict() if name.startswith("policy.")}
    torch.manual_seed(0)
    base = RocketForActionPrediction(tiny_config(family)).eval()
    assert not torch.allclose(base.predict_action_chunk(**inputs, generator=generators[2]), expected, atol=1e-4, rtol=0)


def test_trainable_weights_are_float32_and_frozen_weights_keep_their_dtype():
    torch.manual_seed(0)
    model = RocketForActionPrediction(tiny_config("openvla-oft")).to(torch.bfloat16)
    make_trainable(model, VLARecipe(lora=LORA))
    kinds = {(weight.requires_grad, weight.dtype) for weight in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    weights = merge_lora_weights(model)
    assert weights["policy.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("parts", "layers", "message"),
    [
        (PartsConfig("frozen", "frozen"), [1, -1], "set parts.vision or parts.language to lora or full"),
        (
            PartsConfig("frozen", "lora"),
            [0],
            "student layers [0] would train no weight before these layers: set parts.vision to lora",
        ),
        (PartsConfig("frozen", "frozen", "frozen", "frozen"), [1], "every part of the policy is frozen: set one of"),
    ],
)
def test_alignment_of_frozen_layers_is_refused(parts, layers, message):
    pairs = AlignmentConfig(student_layers=layers, teacher_layers=[1, 2][: len(layers)], nesting="none")
    with pytest.raises(UserError) as caught:
        trainable_model("pi0", parts, alignment=pairs)
    assert message in str(caught.value)


def test_settings_of_absent_parts_are_ignored():
    assert "expert" not in count_trainable_by_part(trainable_model("openvla-oft", PartsConfig(expert="full")))
    with pytest.raises(UserError, match="every part of the policy is frozen"):
        trainable_model("openvla-oft", PartsConfig("frozen", "frozen", "full", "frozen"))
