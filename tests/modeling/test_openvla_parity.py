"""Tests of OpenVLA and OpenVLA-OFT against independent implementations with the same tiny weights.

The references are transformers' Llama, timm's vision transformers, torch's losses and numpy's bins, and at full size
the published number of parameters. A reference never gets padding: each sample runs alone, with its existing tokens
only.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM

from rocket_hf.modeling.configuration_openvla import OpenVLAPolicyConfig
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.openvla_actions import ActionTokenizer
from rocket_hf.tiny import tiny_config

from .conftest import random_model

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
FAMILIES = ("openvla-oft", "openvla")
TOKENS = 16  # image tokens of one camera


def model_with_unit_norms(config: RocketConfig) -> RocketForActionPrediction:
    """Create a random model with norms and scales around 1, so that errors in the attention are not scaled away."""
    model = random_model(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "layernorm.weight", "norm_in.weight", "norm_out.weight", "scale.weight")):
                parameter += 1
    return model


def create_model(family: str, **changes) -> RocketForActionPrediction:
    return model_with_unit_norms(tiny_config(family, alignment=None, **changes))


def uneven_batch(config: RocketConfig) -> dict:
    """Return a batch with prompts of different lengths, a missing camera and padded steps."""
    batch = dict(config.fake_batch(batch_size=3))
    batch["input_ids"][:, 0] = 2
    batch["camera_mask"] = torch.ones(3, len(config.cameras), dtype=torch.bool)
    batch["camera_mask"][1, -1] = False
    return batch


def reference_llama(model: RocketForActionPrediction) -> LlamaForCausalLM:
    """Return transformers' model with the same weights; its language head is unused if the policy has none."""
    theirs = LlamaForCausalLM(model.config.policy_config.language_config).eval()
    parts = ("embed_tokens.", "layers.", "norm.", "lm_head.")
    ours = {name: value for name, value in model.policy.state_dict().items() if name.startswith(parts)}
    weights = {name if name.startswith("lm_head") else f"model.{name}": value for name, value in ours.items()}
    result = theirs.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) <= {"lm_head.weight"}
    return theirs


def llama_states(theirs: LlamaForCausalLM, tokens: torch.Tensor, causal: bool) -> tuple[torch.Tensor, ...]:
    """Return embeddings, the stream after each block except the last, and the final-norm stream of (1, S, width)."""
    length = tokens.shape[1]
    mask = None if causal else torch.zeros(1, 1, length, length)
    return theirs.model(inputs_embeds=tokens, attention_mask=mask, output_hidden_states=True).hidden_states


@contextlib.contextmanager
def recorded_streams(model: RocketForActionPrediction) -> Iterator[list[torch.Tensor]]:
    """Record the input of the first layer and the output of each layer."""
    streams: list[torch.Tensor] = []
    with contextlib.ExitStack() as stack:
        first = model.policy.layers[0].register_forward_pre_hook(lambda _, args: streams.append(args[0]))
        stack.callback(first.remove)
        for layer in model.policy.layers:
            stack.callback(layer.register_forward_hook(lambda _, __, output: streams.append(output)).remove)
        yield streams


def whole_sequence(model: RocketForActionPrediction, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embedded tokens (B, S, width) of a training pass and a mask of those that exist."""
    policy = model.policy
    if model.config.policy_config.variant == "oft":
        return policy.embed_sequence(batch)
    prefix, exists = policy.embed_prefix(batch)
    previous = policy.embed_tokens(policy.tokens.encode(batch["actions"][:, 0, :-1]))
    return torch.cat([prefix, previous], dim=1), F.pad(exists, (0, previous.shape[1]), value=True)


# The language model


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hidden_states_equal_those_of_llama(family, implementation):
    model = create_model(family)
    model.set_attn_implementation(implementation)
    theirs, batch = reference_llama(model), uneven_batch(model.config)
    sequence, exists = whole_sequence(model, batch)
    with recorded_streams(model) as streams:
        model(**batch)
    streams[-1] = model.policy.norm(streams[-1])
    for sample in range(3):
        present = exists[sample]
        expected = llama_states(theirs, sequence[sample : sample + 1, present], causal=family == "openvla")
        for ours, hidden in zip(streams, expected, strict=True):
            torch.testing.assert_close(ours[sample, present], hidden[0], **TOLERANCE)


@pytest.mark.parametrize("changes", [{"rms_norm_eps": 1e-1}, {"rope_theta": 50.0}, {"kv_heads": 2}], ids=str)
@torch.no_grad()
def test_settings_of_llama_take_effect(changes):
    """Compare with other values for norms, rotary embedding and grouped keys."""
    sizes = tiny_config("openvla-oft").policy_config.to_dict() | changes
    del sizes["transformers_version"]
    model = create_model("openvla-oft", policy_config=sizes)
    batch = uneven_batch(model.config)
    sequence, exists = whole_sequence(model, batch)
    with recorded_streams(model) as streams:
        model(**batch)
    expected = llama_states(reference_llama(model), sequence[:1, exists[0]], causal=False)
    torch.testing.assert_close(model.policy.norm(streams[-1])[0, exists[0]], expected[-1][0], **TOLERANCE)
    default = create_model("openvla-oft")
    if changes != {"kv_heads": 2}:
        other = llama_states(reference_llama(default), sequence[:1, exists[0]], causal=False)
        assert not torch.allclose(other[-1], expected[-1], atol=1e-3)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_taps_are_image_tokens(family, shift):
    """Check that taps start after BOS, and one token later with the compatibility setting for the public code."""
    sizes = tiny_config(family).policy_config.to_dict() | {"reference_compat_token_shift": shift}
    del sizes["transformers_version"]
    model = create_model(family, policy_config=sizes)
    batch = model.config.fake_batch()
    sequence, _ = whole_sequence(model, batch)
    with recorded_streams(model) as streams:
        model(**batch)
    taps = model.policy(batch, taps=[0, 1, 2, -1]).taps
    alone = model.policy({key: value for key, value in batch.items() if key != "actions"}, taps=[0, 2]).taps
    cameras = len(model.config.cameras)
    features = model.policy.projector(model.policy.vision_tower(batch["images"].flatten(0, 1)))
    features = features.unflatten(0, (2, cameras))
    assert sorted(taps) == [0, 1, 2, 3]
    if not shift:
        torch.testing.assert_close(taps[0], features)
    else:
        torch.testing.assert_close(taps[0].flatten(1, 2)[:, :-1], features.flatten(1, 2)[:, 1:])
        torch.testing.assert_close(taps[0][:, -1, -1], sequence[:, 1 + cameras * TOKENS])
    for layer, tap in taps.items():
        start = 1 + shift
        assert torch.equal(tap.flatten(1, 2), streams[layer][:, start : start + cameras * TOKENS])
    for layer, tap in alone.items():
        torch.testing.assert_close(tap, taps[layer])


# Actions


def action_head_reference(weights: dict[str, torch.Tensor], slots: torch.Tensor) -> torch.Tensor:
    """Compute OFT's action head from its weights."""

    def norm(name: str, hidden: torch.Tensor) -> torch.Tensor:
        centered = hidden - hidden.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(name: str, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    hidden = linear("fc_in", norm("norm_in", slots)).clamp_min(0)
    for block in ("blocks.0", "blocks.1"):
        hidden = hidden + linear(f"{block}.linear", norm(f"{block}.norm", hidden)).clamp_min(0)
    return linear("fc_out", norm("norm_out", hidden))


@torch.no_grad()
def test_oft_reads_each_slot_one_position_before_it():
    model = create_model("openvla-oft")
    config, batch = model.config, uneven_batch(model.config)
    sequence, exists = whole_sequence(model, batch)
    weights, theirs = model.policy.action_head.state_dict(), reference_llama(model)
    predicted, errors = [], []
    for sample in range(3):
        tokens = sequence[sample : sample + 1, exists[sample]]
        cameras, prompt = batch["camera_mask"][sample].sum(), batch["attention_mask"][sample].sum()
        before = int(1 + cameras * TOKENS + 1 + (prompt - 1) + 1)  # BOS, images, state, prompt, empty token
        slots = config.chunk_size * config.action_dim
        assert tokens.shape[1] == before + slots + 1
        assert not tokens[0, before : before + slots].any()
        assert torch.equal(tokens[0, before - 1], model.policy.embed_tokens.weight[101])
        assert torch.equal(tokens[0, -1], model.policy.embed_tokens.weight[1])
        hidden = llama_states(theirs, tokens, causal=False)[-1][0]
        read = torch.stack([hidden[before + slot - 1] for slot in range(slots)])
        predicted.append(action_head_reference(weights, read.reshape(config.chunk_size, -1)))
        error = (predicted[-1] - batch["actions"][sample]).abs().mean(-1)
        errors.append(error[~batch["action_is_pad"][sample]].mean())
    torch.testing.assert_close(model.predict_action_chunk(**batch), torch.stack(predicted), **TOLERANCE)
    torch.testing.assert_close(model(**batch).losses["action/l1"], torch.stack(errors).mean(), **TOLERANCE)


@torch.no_grad()
def test_loss_of_action_tokens_equals_cross_entropy_of_llama():
    model = create_model("openvla")
    batch, theirs = uneven_batch(model.config), reference_llama(model)
    batch["camera_mask"][:] = True
    sequence, exists = whole_sequence(model, batch)
    tokens = 124 - np.digitize(batch["actions"][:, 0].clamp(-1, 1).numpy(), np.linspace(-1, 1, 16))
    losses = []
    for sample in range(3):
        logits = theirs(inputs_embeds=sequence[sample : sample + 1, exists[sample]]).logits[0]
        losses.append(F.cross_entropy(logits[-model.config.action_dim :], torch.from_numpy(tokens[sample])))
    torch.testing.assert_close(model(**batch).losses["action/cross_entropy"], torch.stack(losses).mean(), **TOLERANCE)


@pytest.mark.parametrize("checkpointing", [False, True])
@torch.no_grad()
def test_cached_decoding_equals_llama_without_cache(checkpointing):
    """Check generation also in training mode with gradient checkpointing, which removes transformers' own caches."""
    model = create_model("openvla")
    batch, theirs = uneven_batch(model.config), reference_llama(model)
    sequence, exists = model.policy.embed_prefix(batch)
    centers = np.linspace(-1, 1, 16)
    centers = (centers[:-1] + centers[1:]) / 2
    expected = np.zeros((3, 1, 5))
    for sample in range(3):
        tokens = sequence[sample : sample + 1, exists[sample]]
        for dimension in range(5):
            logits = theirs(inputs_embeds=tokens, use_cache=False).logits[0, -1]
            best = 108 + logits[108:124].argmax()
            expected[sample, 0, dimension] = centers[np.clip(124 - int(best) - 1, 0, 14)]
            tokens = torch.cat([tokens, theirs.model.embed_tokens(best)[None, None]], dim=1)
    if checkpointing:
        model.train().gradient_checkpointing_enable()
    actions = model.predict_action_chunk(**batch)
    np.testing.assert_allclose(actions.numpy(), expected, atol=1e-6)
    assert len(np.unique(expected)) > 3


def test_action_tokens_equal_published_tokens():
    """Check 256 edges from -1 to 1, ids that descend from 32,000, decoding to bin centers, and clamping."""
    tokenizer = ActionTokenizer(OpenVLAPolicyConfig())
    actions = torch.cat([torch.linspace(-1.2, 1.2, 10_001), torch.tensor([-1.0, 1.0])])
    encoded = tokenizer.encode(actions)
    edges = np.linspace(-1, 1, 256)
    assert np.array_equal(encoded.numpy(), 32000 - np.digitize(actions.double().clamp(-1, 1).numpy(), edges))
    assert (encoded.min(), encoded.max()) == (31744, 31999)
    centers = (edges[:-1] + edges[1:]) / 2
    all_tokens = torch.arange(31744, 32000)
    expected = centers[np.clip(32000 - all_tokens.numpy() - 1, 0, 254)]
    np.testing.assert_allclose(tokenizer.decode(all_tokens).numpy(), expected, atol=1e-7)
    assert tokenizer.decode(torch.tensor([31744])) == tokenizer.decode(torch.tensor([31745]))
    inside = actions[(actions >= -1) & (actions <= 1)]
    assert (tokenizer.decode(tokenizer.encode(inside)) - inside).abs().max() <= 1 / 255 + 1e-6
    assert torch.equal(tokenizer.encode(tokenizer.decode(all_tokens[1:])), all_tokens[1:])


# The vision towers


def timm_names(name: str) -> str:
    inner = {"attention_norm": "norm1", "qkv": "attn.qkv", "attention_out": "attn.proj", "attention_scale": "ls1",
             "mlp_norm": "norm2", "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2", "mlp_scale": "ls2"}  # fmt: skip
    first, *rest = name.split(".")
    if first == "blocks":
        index, module, kind = rest
        return f"blocks.{index}.{inner[module]}.{'gamma' if module.endswith('scale') else kind}"
    return f"patch_embed.proj.{rest[0]}"


def timm_tower(ours: nn.Module, **settings) -> nn.Module:
    timm = pytest.importorskip("timm.models.vision_transformer", reason="the vision towers are compared with timm's")
    sizes = ours.sizes
    theirs = timm.VisionTransformer(
        img_size=28, patch_size=7, embed_dim=sizes.width, depth=sizes.depth, num_heads=sizes.heads,
        mlp_ratio=sizes.mlp_width / sizes.width, num_classes=0, **settings,
    ).eval()  # fmt: skip
    own = dict(ours.state_dict())
    weights = {"pos_embed": own.pop("position_embedding.weight")[None]}
    if sizes.prefix_tokens:
        prefix = own.pop("prefix.weight")[None]
        weights |= {"cls_token": prefix[:, :1], "reg_token": prefix[:, 1:]}
    weights |= {timm_names(name): value for name, value in own.items()}
    result = theirs.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    unused = (f"blocks.{sizes.depth - 1}.", "norm.", "attn_pool.")
    assert all(name.startswith(unused) for name in result.missing_keys)
    return theirs


@pytest.mark.parametrize(
    ("name", "settings", "pixels"),
    [
        (
            "dino",
            {"reg_tokens": 2, "no_embed_class": True, "init_values": 1e-5},
            [(0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)],
        ),
        ("siglip", {"class_token": False, "global_pool": "map"}, [(0.5, 0.5, 0.5), (0.5, 0.5, 0.5)]),
    ],
)
@torch.no_grad()
def test_vision_tower_equals_timm_up_to_second_to_last_block(name, settings, pixels):
    ours = create_model("openvla-oft").policy.vision_tower.get_submodule(name)
    theirs = timm_tower(ours, **settings)
    images = torch.rand(3, 3, 28, 28)
    mean, std = (torch.tensor(values)[:, None, None] for values in pixels)
    (expected,) = theirs.get_intermediate_layers((images - mean) / std, n=[ours.sizes.depth - 2])
    torch.testing.assert_close(ours(images), expected, **TOLERANCE)
    assert expected.shape[1] == TOKENS


@torch.no_grad()
def test_patch_features_of_both_towers_are_concatenated():
    tower = create_model("openvla-oft").policy.vision_tower
    images = torch.randint(0, 256, (2, 3, 28, 28), dtype=torch.uint8)
    unit = images.float() / 255
    torch.testing.assert_close(tower(images), torch.cat([tower.dino(unit), tower.siglip(unit)], dim=-1))


# The published sizes


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Number of parameters of openvla-7b that do not influence the actions.
UNUSED_PARAMETERS = {
    "DINOv2's last block": 12_598_272,
    "DINOv2's final norm": 2_048,
    "SigLIP's last block": 15_239_504,
    "SigLIP's final norm": 2_304,
    "SigLIP's attention pooling": 15_238_352,
}


def test_full_size_equals_published_size():
    with torch.device("meta"):
        config = RocketConfig(policy_config=OpenVLAPolicyConfig(variant="openvla"), chunk_size=1)
        policy = RocketForActionPrediction(config).policy
    assert count(policy) == 7_498_156_704
    assert count(policy) + sum(UNUSED_PARAMETERS.values()) == 7_541_237_184


def test_full_size_of_oft_equals_published_size():
    """Check head and state projector; the language-model head, 32,064 x 4,096, is left out."""
    with torch.device("meta"):
        config = RocketConfig(policy_config=OpenVLAPolicyConfig(), chunk_size=8, cameras=["image", "wrist"])
        policy = RocketForActionPrediction(config).policy
    own = {"action_head": 151_117_831, "state_projector": 16_818_176}
    assert {name: count(policy.get_submodule(name)) for name in own} == own
    assert count(policy) - sum(own.values()) == 7_498_156_704 - 32_064 * 4_096


def test_unused_parameters_equal_those_of_timm():
    timm = pytest.importorskip("timm", reason="the vision towers are compared with timm's")
    with torch.device("meta"):
        dino = timm.create_model("vit_large_patch14_reg4_dinov2", num_classes=0, img_size=224)
        siglip = timm.create_model("vit_so400m_patch14_siglip_224", num_classes=0)
    parts = (dino.blocks[-1], dino.norm, siglip.blocks[-1], siglip.norm, siglip.attn_pool)
    assert [count(part) for part in parts] == list(UNUSED_PARAMETERS.values())
