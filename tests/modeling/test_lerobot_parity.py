"""pi0 and pi0.5 against lerobot's own policies on the same tiny weights: the loss, the sampled actions, the taps.

See rocket_hf/bench/lerobot_tiny.py for how lerobot's policies become tiny.
"""

import contextlib

import pytest
import torch
from torch import nn

from rocket_hf.bench.lerobot_tiny import CAMERAS, lerobot_batch, lerobot_policy
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import letterbox
from rocket_hf.tiny import tiny_config

from .conftest import randomised

pytestmark = pytest.mark.needs_lerobot
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def lerobot_name(name: str) -> str:
    """The name in lerobot's policy of one of our weights."""
    core, vlm = "model.paligemma_with_expert", "model.paligemma_with_expert.paligemma.model"
    towers = {"language": f"{vlm}.language_model.layers", "expert": f"{core}.gemma_expert.model.layers"}
    parts = name.removeprefix("policy.").split(".")
    if parts[0] == "layers":
        inner = ".".join(parts[3:])
        renamed = {
            "attention_norm": "input_layernorm",
            "mlp_norm": "post_attention_layernorm",
            "attention": "self_attn",
        }
        head, _, rest = inner.partition(".")
        return f"{towers[parts[2]]}.{parts[1]}.{renamed.get(head, head)}.{rest.replace('modulation', 'dense')}"
    rest = ".".join(parts[1:])
    vision = f"{vlm}.vision_tower.vision_model"
    if parts[0] == "vision_tower":
        renamed = {
            "patch_embedding": "embeddings.patch_embedding",
            "position_embedding": "embeddings.position_embedding",
            "layers": "encoder.layers",
            "norm": "post_layernorm",
        }
        return f"{vision}.{renamed[parts[1]]}.{'.'.join(parts[2:])}"
    return {
        "image_projection": f"{vlm}.multi_modal_projector.linear.{rest}",
        "embed_tokens": f"{vlm}.language_model.embed_tokens.{rest}",
        "expert_norm": f"{core}.gemma_expert.model.norm.{rest.replace('modulation', 'dense')}",
        "state_projection": f"model.state_proj.{rest}",
        "action_in": f"model.action_in_proj.{rest}",
        "action_out": f"model.action_out_proj.{rest}",
        "time_mlp_in": f"model.{{time}}_in.{rest}",
        "time_mlp_out": f"model.{{time}}_out.{rest}",
    }[parts[0]]


def copy_weights(ours: RocketForActionPrediction, theirs: nn.Module) -> None:
    time = "time_mlp" if ours.config.policy_config.variant == "pi05" else "action_time_mlp"
    weights = {
        lerobot_name(name).replace("{time}", time): weight
        for name, weight in ours.state_dict().items()
        if name.startswith("policy.")
    }
    result = theirs.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    # What ours leaves out: no action depends on it.
    vlm, expert = "model.paligemma_with_expert.paligemma", "model.paligemma_with_expert.gemma_expert"
    unused = {f"{vlm}.model.language_model.norm.weight", f"{vlm}.lm_head.weight", f"{expert}.lm_head.weight"}
    assert set(result.missing_keys) == unused


@pytest.fixture(params=["pi0", "pi05"])
def pair(request):
    """Our model and lerobot's policy with the same weights."""
    config = tiny_config(request.param, alignment=None)
    ours, theirs = randomised(config), lerobot_policy(config)
    copy_weights(ours, theirs)
    return ours, theirs


def noise_and_time(config, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(7)
    noise = torch.randn(size, config.chunk_size, config.policy_config.max_action_dim, generator=draw)
    return noise, torch.rand(size, generator=draw) * 0.999 + 0.001


@pytest.mark.parametrize("present", [CAMERAS, CAMERAS[:1], CAMERAS[1:]], ids=["both", "first", "second"])
def test_loss_and_actions_are_lerobots(pair, present):
    ours, theirs = pair
    config = ours.config
    batch = config.fake_batch(batch_size=3)  # prompts of different lengths
    del batch["action_is_pad"]  # lerobot's pi policies do not know padding steps
    batch["camera_mask"][:] = torch.tensor([name in present for name in CAMERAS])
    noise, time = noise_and_time(config, 3)
    theirs.model.sample_noise = lambda shape, device: noise
    theirs.model.sample_time = lambda size, device: time

    expected, _ = theirs.forward(lerobot_batch(batch, present))
    losses = ours(**batch, noise=noise, time=time)
    torch.testing.assert_close(losses["action/flow_matching"], expected, **TOLERANCE)

    expected = theirs.predict_action_chunk(lerobot_batch(batch, present), noise=noise)
    torch.testing.assert_close(ours.predict_action_chunk(**batch, noise=noise), expected, **TOLERANCE)


def test_cameras_missing_in_single_samples(pair):
    """Per sample, lerobot's core takes masks: each sample misses another camera."""
    ours, theirs = pair
    config = ours.config
    batch = config.fake_batch(batch_size=2)
    batch["camera_mask"] = torch.tensor([[True, False], [False, True]])
    noise, _ = noise_and_time(config, 2)
    images = [batch["images"][:, index].float() / 255 * 2 - 1 for index in range(2)]
    masks = list(batch["camera_mask"].unbind(1))
    inputs = [images, masks, batch["input_ids"], batch["attention_mask"].bool()]
    if config.policy_config.reads_state:
        inputs.append(theirs.prepare_state({"observation.state": batch["state"]}))
    expected = theirs.model.sample_actions(*inputs, noise=noise)[..., : config.action_dim]
    torch.testing.assert_close(ours.predict_action_chunk(**batch, noise=noise), expected, **TOLERANCE)


def test_taps_are_what_hooks_on_lerobots_layers_see(pair):
    ours, theirs = pair
    config = ours.config
    batch = config.fake_batch()
    noise, time = noise_and_time(config, 2)
    theirs.model.sample_noise = lambda shape, device: noise
    theirs.model.sample_time = lambda size, device: time
    language = theirs.model.paligemma_with_expert.paligemma.model.language_model
    # The input of layer i's first norm is the stream after block i, that of the final norm the stream after the last.
    norms = [*(layer.input_layernorm for layer in language.layers), language.norm]
    seen = {}
    with contextlib.ExitStack() as stack:
        for index, norm in enumerate(norms):
            hook = norm.register_forward_pre_hook(lambda _, args, index=index: seen.__setitem__(index, args[0]))
            stack.callback(hook.remove)
        theirs.forward(lerobot_batch(batch))

    depth = config.policy_config.depth
    output = ours.policy(batch | {"noise": noise, "time": time}, taps=[0, 1, 2, -1])
    assert sorted(output.taps) == [0, 1, 2, depth]
    for layer, tap in output.taps.items():
        tokens = tap.shape[1] * tap.shape[2]
        torch.testing.assert_close(tap.flatten(1, 2), seen[layer][:, :tokens], **TOLERANCE)


def test_letterbox_is_lerobots():
    from lerobot.policies.common.vla_utils import resize_with_pad_torch

    for shape in ((48, 64), (64, 48), (20, 31), (28, 28), (480, 640)):
        images = torch.rand(2, 3, *shape)
        torch.testing.assert_close(letterbox(images, 28), resize_with_pad_torch(images, 28, 28))


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile"])
def test_normalisation_is_lerobots(mode):
    from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep

    from rocket_hf.modeling.normalization import Normalizer
    from rocket_hf.tiny import tiny_statistics

    config = tiny_config()
    statistics = tiny_statistics(config)["action"]
    statistics["max"][2] = statistics["min"][2]  # a dimension that never moves
    lerobot_mode = {"mean_std": NormalizationMode.MEAN_STD, "min_max": NormalizationMode.MIN_MAX,
                    "quantile": NormalizationMode.QUANTILES}[mode]  # fmt: skip
    arguments = dict(
        features={"action": PolicyFeature(FeatureType.ACTION, (5,))},
        norm_map={FeatureType.ACTION: lerobot_mode},
        stats={"action": {key: torch.tensor(value) for key, value in statistics.items()}},
    )
    forward, back = NormalizerProcessorStep(**arguments), UnnormalizerProcessorStep(**arguments)
    ours = Normalizer("action", 5, mode, statistics)
    raw = torch.randn(3, 4, 5)
    expected = forward._normalize_action(raw, inverse=False)
    torch.testing.assert_close(ours.normalize(raw), expected)
    torch.testing.assert_close(ours.unnormalize(raw), back._normalize_action(raw, inverse=True))
