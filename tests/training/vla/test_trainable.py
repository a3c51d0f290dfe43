"""What trains and what does not, by name and by count; that each trained weight gets a gradient; and LoRA, merged."""

from collections import Counter

import pytest
import torch
from torch import nn

from rocket_hf.modeling.configuration_openvla import OpenVLAPolicyConfig
from rocket_hf.modeling.configuration_rocket import AlignmentConfig, RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.tiny import TINY_POLICIES, tiny_config
from rocket_hf.training.optimization import create_optimizer, trained
from rocket_hf.training.recipe import LoraSettings, OptimizerConfig, PartsConfig, VLARecipe
from rocket_hf.training.recipe_files import read_recipe
from rocket_hf.training.vla.resources import alignment_config
from rocket_hf.training.vla.trainable import count_trainable_by_part, make_trainable, merge_lora_weights, policy_of

RANK = 2
LORA = LoraSettings(rank=RANK)
EVERYTHING = PartsConfig("full", "full", "full", "full")
CHOICES = {
    "by default": PartsConfig(),
    "all": EVERYTHING,
    "no images": PartsConfig("frozen", "lora", "full", "frozen"),
}
# Below `policy.`, what each part of each family is made of.
VISION = {"vision_tower", "image_projection", "projector"}
LANGUAGE = {"embed_tokens", "norm", "lm_head"}
EXPERT = {"expert_norm"}


def made(family: str, parts: PartsConfig, lora: LoraSettings = LORA, **changes) -> RocketForActionPrediction:
    torch.manual_seed(0)
    model = RocketForActionPrediction(tiny_config(family, **changes)).train()
    make_trainable(model, VLARecipe(parts=parts, lora=lora))
    return model


def choice_of(parts: PartsConfig, name: str) -> str:
    """What is said about a weight, by the names of the modules that it lies in."""
    first, *rest = name.split(".")[1:]
    if name.startswith("alignment_head."):
        return "full"
    if first in VISION:
        return parts.vision
    if first in EXPERT or (first == "layers" and any(word == "expert" for word in rest)):
        return parts.expert
    return parts.language if first in LANGUAGE or first == "layers" else parts.heads


@pytest.mark.parametrize("parts", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("family", TINY_POLICIES)
def test_what_trains_is_what_the_parts_say_and_it_alone_moves(family, parts):
    model = made(family, parts)
    counted = require_choice(model, RocketForActionPrediction(tiny_config(family)), parts)
    assert sum(count for count, _ in count_trainable_by_part(model).values()) == counted
    names = {name for name, _ in trained(model)}
    assert moved(model) == names


def require_choice(model: nn.Module, plain: nn.Module, parts: PartsConfig) -> int:
    """That the trained weights are those, by name and by number."""
    weights = dict(plain.named_parameters())
    adapted = {
        f"{name}.weight": module.weight
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and choice_of(parts, f"{name}.weight") == "lora"
    }
    pairs = {name.removesuffix("weight") + f"lora_{half}.default.weight" for name in adapted for half in "AB"}
    assert {name for name, _ in trained(model)} == {
        name for name in weights if choice_of(parts, name) == "full"
    } | pairs
    counted = sum(weight.numel() for name, weight in weights.items() if choice_of(parts, name) == "full")
    counted += sum(RANK * (len(weight) + weight[0].numel()) for weight in adapted.values())  # rows and what each reads
    assert sum(weight.numel() for _, weight in trained(model)) == counted
    return counted


def moved(model: nn.Module) -> set[str]:
    """The weights that two steps change: LoRA's first half moves once its second one is not zero. Each trained one gets
    a gradient, so that no rank waits for one."""
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = create_optimizer(model, OptimizerConfig(lr=0.1))
    for seed in range(2):
        targets = model.config.fake_targets(seed=seed) if model.config.alignment is not None else None
        losses = model(**model.config.fake_batch(seed=seed), targets=targets).losses
        torch.stack(list(losses.values())).sum().backward()
        assert [name for name, weight in trained(model) if weight.grad is None] == []
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}


@pytest.mark.parametrize("family", TINY_POLICIES)
def test_without_an_alignment_every_trained_weight_gets_a_gradient_too(family):
    model = made(family, PartsConfig(), alignment=None)
    assert moved(model) <= {name for name, _ in trained(model)}


def test_the_published_run_trains_the_published_weights():
    """OpenVLA-OFT at its full size. Published: 79,953,920 weights of LoRA in the language model and 29,110,016 in the
    vision part, of which 1,094,656 are in blocks whose outputs nobody reads."""
    recipe = read_recipe("rocket-openvla-oft")
    config = RocketConfig(
        policy_config=OpenVLAPolicyConfig(variant="oft"), cameras=["image", "wrist"], chunk_size=8,
        alignment=alignment_config(recipe, 2048),
    )  # fmt: skip
    with torch.device("meta"):
        model = RocketForActionPrediction(config)
    make_trainable(model, recipe)
    counts: Counter[str] = Counter()
    for name, weight in trained(model):
        home = name.split(".")[1] if name.startswith("policy.") else "alignment"
        kind = "lora" if ".lora_" in name else "full"
        counts[{"layers": "language", "vision_tower": "vision", "projector": "vision"}.get(home, home), kind] += (
            weight.numel()
        )
    heads = counts.pop(("action_head", "full")) + counts.pop(("state_projector", "full"))
    assert heads == 167_936_007
    assert counts == {
        ("language", "lora"): 79_953_920, ("vision", "lora"): 29_110_016 - 1_094_656,
        ("alignment", "full"): 12_595_200,
    }  # fmt: skip


def test_what_no_loss_reaches_stays_frozen_though_its_part_trains():
    """Without an alignment of the last layer, the language model's last block serves the expert's attention alone."""
    model = made("pi0", EVERYTHING, alignment=None)
    idle = {name.removeprefix("policy.") for name, weight in model.named_parameters() if not weight.requires_grad}
    assert idle and all(name.startswith("layers.2.") or name == "norm.weight" for name in idle), idle
    assert not any("expert" in name.split(".") for name in idle)


def with_random_adapters(family: str, init: str) -> RocketForActionPrediction:
    model = made(family, PartsConfig(), LoraSettings(rank=RANK, alpha=3, init=init))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in trained(model):
            if ".lora_" in name:
                weight.add_(torch.randn(weight.shape, generator=draw) / 10)
    return model.eval()


@pytest.mark.parametrize(
    ("family", "init"),
    [(family, "gaussian") for family in ("pi0", "pi05", "smolvla")]
    + [("openvla-oft", init) for init in ("gaussian", "kaiming", "pissa", "olora")],
)
def test_merged_weights_do_what_the_adapted_model_does(family, init):
    model = with_random_adapters(family, init)
    adapted = {name for name, _ in model.named_modules() if name.endswith(".base_layer")}
    assert any(isinstance(model.get_submodule(name), nn.Conv2d) for name in adapted)
    policy = policy_of(model.config, merge_lora_weights(model))
    batch = model.config.fake_batch()
    inputs = {key: value for key, value in batch.items() if key not in ("actions", "action_is_pad")}
    draws = [torch.Generator().manual_seed(0) for _ in range(3)]
    expected = model.predict_action_chunk(**inputs, generator=draws[0])
    torch.testing.assert_close(policy.predict_action_chunk(**inputs, generator=draws[1]), expected, atol=1e-5, rtol=0)
    plain = RocketForActionPrediction(tiny_config(family))
    assert policy.state_dict().keys() == {name for name in plain.state_dict() if name.startswith("policy.")}
    torch.manual_seed(0)
    base = RocketForActionPrediction(tiny_config(family)).eval()
    assert not torch.allclose(base.predict_action_chunk(**inputs, generator=draws[2]), expected, atol=1e-4, rtol=0)


def test_trained_weights_are_float32_and_frozen_ones_keep_their_dtype():
    torch.manual_seed(0)
    model = RocketForActionPrediction(tiny_config("openvla-oft")).to(torch.bfloat16)
    make_trainable(model, VLARecipe(lora=LORA))
    kinds = {(weight.requires_grad, weight.dtype) for weight in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    weights = merge_lora_weights(model)
    assert weights["policy.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("parts", "layers", "sentence"),
    [
        (PartsConfig("frozen", "frozen"), [1, -1], "set parts.vision or parts.language to lora or full"),
        (PartsConfig("frozen", "lora"), [0], "student layers [0]: set parts.vision to lora"),
        (PartsConfig("frozen", "frozen", "frozen", "frozen"), [1], "every part of the policy is frozen: set one of"),
    ],
)
def test_an_alignment_that_trains_nothing_that_it_taps_is_refused(parts, layers, sentence):
    pairs = AlignmentConfig(student_layers=layers, teacher_layers=[1, 2][: len(layers)], nesting="none")
    with pytest.raises(ValueError) as caught:
        made("pi0", parts, alignment=pairs)
    assert sentence in str(caught.value)


def test_a_part_that_the_policy_does_not_have_may_say_anything():
    assert "expert" not in count_trainable_by_part(made("openvla-oft", PartsConfig(expert="full")))
    with pytest.raises(ValueError, match="every part of the policy is frozen"):
        made("openvla-oft", PartsConfig("frozen", "frozen", "full", "frozen"))
