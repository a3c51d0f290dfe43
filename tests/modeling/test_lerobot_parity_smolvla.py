"""Tests of SmolVLA against lerobot's policy with the same tiny weights: loss, sampled actions and taps.

rocket_hf/bench/lerobot_tiny.py creates lerobot's tiny policy. At full size the names and shapes of weights are
compared.
"""

from typing import Any

import pytest
import torch
from torch import nn

from rocket_hf.bench.lerobot_tiny import CAMERAS, FAKE_ID, GLOBAL_ID, lerobot_batch, lerobot_smolvla
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.configuration_smolvla import SmolVLAConfig
from rocket_hf.modeling.image_resizing import letterbox_top_left
from rocket_hf.modeling.llama_layers import LlamaNorm
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.tiny import SMOLVLA_SIZES, tiny_config

from .conftest import hooked_streams, random_model

pytestmark = pytest.mark.needs_lerobot
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "last layer crosses": {"depth": 4},
    "every third layer joins": {"depth": 5, "self_attention_every": 3},
    "all layers join": {"self_attention_every": 1},
    "framed images": {"image_start_ids": [FAKE_ID, GLOBAL_ID], "image_end_ids": [FAKE_ID]},
}


def lerobot_name(name: str) -> str:
    """Return the name in lerobot's policy of a weight of rocket_hf."""
    core = "model.vlm_with_expert"
    halves = {"language": f"{core}.vlm.model.text_model.layers", "expert": f"{core}.lm_expert.layers"}
    part, _, rest = name.removeprefix("policy.").partition(".")
    if part == "layers":
        index, half, module, rest = rest.split(".", 3)
        renamed = {
            "attention_norm": "input_layernorm",
            "mlp_norm": "post_attention_layernorm",
            "attention": "self_attn",
        }
        return f"{halves[half]}.{index}.{renamed.get(module, module)}.{rest}"
    if part == "vision_tower":
        part, _, rest = rest.partition(".")
        renamed = {
            "patch_embedding": "embeddings.patch_embedding",
            "position_embedding": "embeddings.position_embedding",
            "layers": "encoder.layers",
            "norm": "post_layernorm",
        }
        return f"{core}.vlm.model.vision_model.{renamed[part]}.{rest}"
    renamed = {
        "image_projection": f"{core}.vlm.model.connector.modality_projection.proj",
        "embed_tokens": f"{core}.vlm.model.text_model.embed_tokens",
        "expert_norm": f"{core}.lm_expert.norm",
        "state_projection": "model.state_proj",
        "action_in": "model.action_in_proj",
        "action_out": "model.action_out_proj",
        "time_mlp_in": "model.action_time_mlp_in",
        "time_mlp_out": "model.action_time_mlp_out",
    }
    return f"{renamed[part]}.{rest}"


# Weights that rocket_hf leaves out, because no action depends on them.
UNUSED = {"model.vlm_with_expert.vlm.model.text_model.norm.weight", "model.vlm_with_expert.vlm.lm_head.weight"}


def copy_weights(ours: RocketForActionPrediction, theirs: nn.Module) -> None:
    result = theirs.load_state_dict({lerobot_name(name): weight for name, weight in ours.state_dict().items()}, False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) == UNUSED


def tiny_pair(variant: str = "published", **settings: Any) -> tuple[RocketForActionPrediction, Any]:
    """Return rocket_hf's model and lerobot's policy with the same weights."""
    sizes = SmolVLAConfig(**(SMOLVLA_SIZES | VARIANTS[variant]))
    config = tiny_config("smolvla", policy_config=sizes, alignment=None)
    ours = random_model(config)
    with torch.no_grad():
        for module in ours.modules():
            if isinstance(module, LlamaNorm):
                module.weight += 1  # norms around 0 would suppress the layers' outputs
    theirs = lerobot_smolvla(config, **settings)
    copy_weights(ours, theirs)
    return ours, theirs


@pytest.fixture(params=VARIANTS)
def pair(request) -> tuple[RocketForActionPrediction, Any]:
    return tiny_pair(request.param)


def noise_and_time(config: RocketConfig, size: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(7)
    noise = torch.randn(size, config.chunk_size, config.policy_config.max_action_dim, generator=draw)
    return {"noise": noise, "time": torch.rand(size, generator=draw) * 0.999 + 0.001}


def masked_batch(batch: dict, present: tuple[str, ...] = CAMERAS) -> dict:
    """Convert a batch to lerobot's names, with a mask for each camera and for padding steps."""
    masks = {f"{name}_padding_mask": batch["camera_mask"][:, index] for index, name in enumerate(CAMERAS)}
    return lerobot_batch(batch, present) | masks | {"action_is_pad": batch["action_is_pad"]}


def assert_equal_loss_and_actions(ours, theirs, batch: dict, lerobot_inputs: dict) -> None:
    """Compare loss and sampled actions; in both losses each sample has the same weight, whatever its length."""
    drawn = noise_and_time(ours.config, len(batch["images"]))
    expected, _ = theirs.forward(dict(lerobot_inputs), **drawn, reduction="none")
    loss = ours(**batch, **drawn).losses["action/flow_matching"]
    torch.testing.assert_close(loss, expected.mean(), **TOLERANCE)

    del drawn["time"]
    expected = theirs.predict_action_chunk(dict(lerobot_inputs), **drawn)
    torch.testing.assert_close(ours.predict_action_chunk(**batch, **drawn), expected, **TOLERANCE)


def test_loss_and_actions_equal_those_of_lerobot(pair):
    """Use prompts of different lengths, padding steps, and cameras that are missing in some samples."""
    batch = pair[0].config.fake_batch(batch_size=3)
    assert_equal_loss_and_actions(*pair, batch, masked_batch(batch))
    batch["camera_mask"] = torch.tensor([[True, False], [False, True], [True, True]])
    assert_equal_loss_and_actions(*pair, batch, masked_batch(batch))


@pytest.mark.parametrize("empty_cameras", [0, 1])
@pytest.mark.parametrize("index", [0, 1])
def test_camera_missing_in_whole_batch_matches_lerobot(index, empty_cameras):
    """Cover both ways of lerobot: to drop the camera, or to append a masked image for it (`empty_cameras`)."""
    ours, theirs = tiny_pair(empty_cameras=empty_cameras)
    batch = ours.config.fake_batch(batch_size=3)
    batch["camera_mask"][:, 1 - index] = False
    assert_equal_loss_and_actions(ours, theirs, batch, masked_batch(batch, CAMERAS[index : index + 1]))


def test_loss_without_padding_steps_equals_training_loss_of_lerobot():
    ours, theirs = tiny_pair()
    batch = ours.config.fake_batch()
    del batch["action_is_pad"]
    drawn = noise_and_time(ours.config, 2)
    expected, _ = theirs.forward(lerobot_batch(batch), **drawn)
    torch.testing.assert_close(ours(**batch, **drawn).losses["action/flow_matching"], expected, **TOLERANCE)


def test_prefix_length_of_lerobot_adds_only_padding():
    """Check that lerobot's setting changes nothing, because rocket_hf does not have it."""
    ours, theirs = tiny_pair(prefix_length=60)
    batch = ours.config.fake_batch()
    assert_equal_loss_and_actions(ours, theirs, batch, masked_batch(batch))


def test_taps_equal_streams_of_lerobot_layers(pair):
    ours, theirs = pair
    config = ours.config
    batch = config.fake_batch()
    batch["camera_mask"] = torch.tensor([[True, True], [False, True]])
    drawn = noise_and_time(config, 2)
    language = theirs.model.vlm_with_expert.vlm.model.text_model
    streams = hooked_streams(language, lambda: theirs.forward(masked_batch(batch), **drawn))

    sizes = config.policy_config
    taps = ours.policy(batch | drawn, taps=range(sizes.depth + 1)).taps
    assert sorted(taps) == sorted(streams)
    del batch["actions"]
    alone = ours.policy(batch, taps=range(sizes.depth + 1)).taps
    start, end = len(sizes.image_start_ids), len(sizes.image_end_ids)
    present = batch["camera_mask"]
    for layer, tap in taps.items():
        cameras, tokens = tap.shape[1:3]
        framed = streams[layer][:, : cameras * (start + tokens + end)].unflatten(1, (cameras, -1))
        expected = framed[:, :, start : start + tokens]
        torch.testing.assert_close(tap[present], expected[present], **TOLERANCE)
        torch.testing.assert_close(alone[layer][present], expected[present], **TOLERANCE)


def test_full_size_weight_names_and_shapes_equal_lerobot():
    """Compare on the meta device; the published checkpoint has 500 tensors."""
    config = RocketConfig(policy_config=SmolVLAConfig())
    with torch.device("meta"):
        ours, theirs = RocketForActionPrediction(config), lerobot_smolvla(config)
    shapes = {lerobot_name(name): weight.shape for name, weight in ours.state_dict().items()}
    expected = {name: weight.shape for name, weight in theirs.state_dict().items()}
    assert len(expected) == 500
    assert shapes == {name: shape for name, shape in expected.items() if name not in UNUSED}
    assert config.policy_config.image_grid == (8, 8)


def test_letterbox_equals_lerobot():
    from lerobot.policies.common.vla_utils import resize_with_pad

    for shape in ((48, 64), (64, 48), (20, 31), (28, 28), (480, 640)):
        images = torch.rand(2, 3, *shape)
        torch.testing.assert_close(letterbox_top_left(images, 28), resize_with_pad(images, 28, 28, pad_value=0))
