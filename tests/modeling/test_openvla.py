"""Tests of OpenVLA and OpenVLA-OFT: prompt, empty token, padding inside the sequence, limits, initial weights."""

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_openvla import OpenVLAPolicyConfig
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.vit_block import LayerScale
from rocket_hf.tiny import OPENVLA_SIZES, character_tokenizer, tiny_config, tiny_statistics

from .conftest import random_model
from .test_model import observation

FAMILIES = ("openvla-oft", "openvla")
EMPTY = OPENVLA_SIZES["empty_token_id"]


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.mark.parametrize("variant", ["oft", "openvla"])
def test_limits_of_variants_are_checked(variant):
    policy = OpenVLAPolicyConfig(variant=variant)
    if variant == "oft":
        robot = RocketConfig(policy_config=policy, state_dim=200, action_dim=100, cameras=list("abcd"), chunk_size=8)
        assert robot.policy_config.reads_state
        return
    with pytest.raises(StrictDataclassError, match=r"chunk_size=8 is above policy_config\.max_chunk_size=1"):
        RocketConfig(policy_config=policy, chunk_size=8)
    with pytest.raises(StrictDataclassError, match=r"cameras=2 is above policy_config\.max_cameras=1"):
        RocketConfig(policy_config=policy, chunk_size=1, cameras=["a", "b"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 3}, "heads=32 must be a multiple of kv_heads=3"),
        ({"dino_heads": 3}, "dino_width=1024 must be a multiple of dino_heads=3"),
        ({"siglip_depth": 1}, "siglip_depth must be at least 2: the last block is not used"),
        ({"base_vocab_size": 32065}, "2 <= action_bins <= base_vocab_size <= vocab_size, got 256, 32065, 32064"),
        ({"empty_token_id": 32064}, "empty_token_id=32064 is not in the vocabulary"),
        ({"action_bin": 3}, "did you mean 'action_bins'"),
    ],
)
def test_contradictory_configurations_are_rejected(changes, message):
    with pytest.raises((UserError, StrictDataclassError), match=message):
        OpenVLAPolicyConfig(**changes)


def test_prompt_equals_published_prompt():
    config = tiny_config("openvla-oft")
    processor = RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config))
    expected = "In: What action should the robot take to put the red_cup in drawer a?\nOut:"
    assert processor.prompts(["Put the RED_cup in drawer A"], torch.zeros(1, 6)) == [expected]


def test_prompt_gets_exactly_one_final_empty_token(family):
    """Check prompts that end with the empty token and prompts that do not; earlier empty tokens stay."""
    model = random_model(tiny_config(family, alignment=None))
    batch = observation(model.config.fake_batch(batch_size=1))
    without = dict(batch, input_ids=torch.tensor([[2, 50, 60, EMPTY, 70, 9]]), attention_mask=torch.ones(1, 6))
    without["attention_mask"][0, 5] = 0  # BOS and four tokens, then padding
    ended = dict(without, input_ids=without["input_ids"].clone(), attention_mask=torch.ones(1, 6))
    ended["input_ids"][0, 5] = EMPTY
    sequences = []
    for inputs in (without, ended):
        tokens, exists = model.policy.embed_prefix(inputs)
        sequences.append(tokens[exists])
    assert torch.equal(*sequences)
    torch.testing.assert_close(model.predict_action_chunk(**without), model.predict_action_chunk(**ended))
    twice = dict(ended, input_ids=torch.tensor([[2, 50, 60, 70, EMPTY, EMPTY]]))
    tokens, exists = model.policy.embed_prefix(twice)
    assert torch.equal(tokens[exists][-2:], model.policy.embed_tokens.weight[[EMPTY, EMPTY]])


def test_padded_batch_equals_single_samples(family):
    """Compare loss, actions and taps of samples with different prompts and cameras."""
    model = random_model(tiny_config(family, alignment=None))
    cameras = len(model.config.cameras)
    batch = dict(model.config.fake_batch(batch_size=3, prompt_length=8))
    del batch["action_is_pad"]
    batch["camera_mask"] = torch.ones(3, cameras, dtype=torch.bool)
    batch["camera_mask"][1, -1] = False
    losses, actions = [], []
    with torch.no_grad():
        together = model.policy(batch, taps=[3])
        for sample in range(3):
            length = int(batch["attention_mask"][sample].sum())
            alone = {key: value[sample : sample + 1] for key, value in batch.items()}
            for key in ("input_ids", "attention_mask"):
                alone[key] = alone[key][:, :length]
            output = model.policy(alone, taps=[3])
            losses += output.losses.values()
            present = batch["camera_mask"][sample]
            torch.testing.assert_close(
                output.taps[3][0, present], together.taps[3][sample, present], atol=1e-5, rtol=1e-5
            )
            actions.append(model.predict_action_chunk(**observation(alone)))
    (loss,) = together.losses.values()
    torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model.predict_action_chunk(**observation(batch)), torch.cat(actions), atol=1e-5, rtol=1e-5
    )


def test_policy_with_missing_camera_equals_policy_without_it():
    """Check that the positions of the tokens after a missing camera close the gap."""
    both = random_model(tiny_config("openvla-oft", alignment=None))
    one = RocketForActionPrediction(tiny_config("openvla-oft", alignment=None, cameras=["wrist"])).eval()
    one.load_state_dict(both.state_dict())
    batch = observation(both.config.fake_batch())
    batch["camera_mask"][:, 0] = False
    single = dict(batch, images=batch["images"][:, 1:], camera_mask=batch["camera_mask"][:, 1:])
    torch.testing.assert_close(both.predict_action_chunk(**batch), one.predict_action_chunk(**single))


def test_attention_is_bidirectional_in_oft_and_causal_in_openvla():
    """Check whether the last token of the prompt changes the image tokens."""
    for family, is_bidirectional in (("openvla-oft", True), ("openvla", False)):
        model = random_model(tiny_config(family, alignment=None))
        batch = observation(model.config.fake_batch(batch_size=1))
        other = dict(batch, input_ids=batch["input_ids"].clone())
        other["input_ids"][0, -1] += 1
        with torch.no_grad():
            first, second = (model.policy(inputs, taps=[2]).taps[2] for inputs in (batch, other))
        assert torch.equal(first, second) != is_bidirectional


def test_oft_has_no_language_model_head():
    names = RocketForActionPrediction(tiny_config("openvla-oft")).state_dict()
    assert not [name for name in names if "lm_head" in name]
    assert [name for name in RocketForActionPrediction(tiny_config("openvla")).state_dict() if "lm_head" in name]


def test_layer_scales_start_near_zero():
    config = tiny_config("openvla-oft", alignment=None)
    model = RocketForActionPrediction(config)
    scales = [module for module in model.modules() if isinstance(module, LayerScale)]
    assert len(scales) == 2 * (config.policy_config.dino_depth - 1)
    assert all((module.weight == 1e-5).all() for module in scales)


def test_model_has_no_buffers(family):
    """Check that a model that was created on the meta device and then loaded is complete."""
    model = random_model(tiny_config(family, alignment=None))
    assert not list(model.buffers())
    with torch.device("meta"):
        other = RocketForActionPrediction(model.config)
    other.load_state_dict(model.state_dict(), strict=True, assign=True)
    batch = observation(model.config.fake_batch())
    assert torch.equal(other.eval().predict_action_chunk(**batch), model.predict_action_chunk(**batch))


def test_action_loss_is_computed_in_float32():
    """Check that the loss of a half-precision policy is not rounded to half precision."""
    model = random_model(tiny_config("openvla-oft", alignment=None)).to(torch.bfloat16)
    batch = model.config.fake_batch()
    assert model(**batch).losses["action/l1"].dtype == torch.float32
    predicted = model.predict_action_chunk(**observation(batch))
    expected = F.l1_loss(predicted, batch["actions"], reduction="none").mean(-1)
    full = dict(batch, action_is_pad=torch.zeros_like(batch["action_is_pad"]))
    torch.testing.assert_close(model(**full).losses["action/l1"], expected.mean())
