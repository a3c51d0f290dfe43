"""Tests that configurations reject unknown keys and contradictions, and that files restore them."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_rocket import AlignmentConfig, RocketConfig
from rocket_hf.modeling.configuration_smolvla import SmolVLAConfig
from rocket_hf.modeling.policy_interface import check_batch, resolve_layer
from rocket_hf.tiny import tiny_config

# Validation in the constructor raises UserError; huggingface_hub wraps that of the `validate_*` methods.
CONFIG_ERRORS = (UserError, StrictDataclassError)


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: RocketConfig(chunk_sise=4), "no key 'chunk_sise': did you mean 'chunk_size'?"),
        (lambda: Pi0Config(dept=3), "no key 'dept': did you mean 'depth'?"),
        (lambda: AlignmentConfig(nested_width=[1]), "did you mean 'nested_widths'?"),
        (lambda: RocketConfig(policy_config={"model_type": "rocket_pi"}), "did you mean 'rocket_pi0'?"),
        (lambda: RocketConfig(policy_config={"depth": 3}), "unknown model_type None"),
        (lambda: RocketConfig(chunk_size="4"), "expected int"),
        (lambda: RocketConfig(chunk_size=0), "chunk_size must be at least 1"),
        (lambda: RocketConfig(action_normalization="z-score"), "action_normalization"),
        (lambda: RocketConfig(cameras=["a", "a"]), "cameras must be 1 to 4 different names"),
        (lambda: RocketConfig(cameras=list("abcde")), "cameras must be 1 to 4 different names"),
        (lambda: RocketConfig(action_dim=33), "action_dim=33 is above policy_config.max_action_dim=32"),
        (lambda: RocketConfig(action_dim=2, action_names=["x"]), "action_names has 1 names, but action_dim is 2"),
        (lambda: Pi0Config(variant="pi1"), "variant"),
        (lambda: Pi0Config(heads=8, kv_heads=3), "heads=8 must be a multiple of kv_heads=3"),
        (lambda: Pi0Config(image_size=225), "image_size=225 must be a multiple of patch_size=14"),
        (lambda: SmolVLAConfig(heads=15, kv_heads=4), "heads=15 must be a multiple of kv_heads=4"),
        (lambda: SmolVLAConfig(image_size=528), "image_size=528 must be a multiple of patch_size x pixel_shuffle=64"),
        (lambda: SmolVLAConfig(self_attention_every=0), "self_attention_every must be at least 1"),
        (lambda: SmolVLAConfig(image_end_ids=[49280]), "image_end_ids must lie in 0..49279: got [] and [49280]"),
        (lambda: AlignmentConfig(student_layers=[1, 2]), "got 2 student layers and 10 teacher layers"),
        (lambda: AlignmentConfig(projector="independent"), "independent projectors have full width"),
        (lambda: AlignmentConfig(nesting="explicit"), "nested_widths must be given exactly when"),
        (lambda: AlignmentConfig(nested_widths=[1] * 10), "nested_widths must be given exactly when"),
        (lambda: AlignmentConfig(nesting="explicit", nested_widths=[1, 2]), "one width per layer pair"),
        (lambda: AlignmentConfig(nesting="explicit", nested_widths=[0] * 10), "must lie in 1..hidden_width"),
        (lambda: AlignmentConfig(student_layers=[1], teacher_layers=[1]), "a single layer pair cannot be nested"),
        (
            lambda: tiny_config(alignment={"student_layers": [1, 4], "teacher_layers": [1, 2]}),
            "layer 4 does not exist: the model has 3 blocks",
        ),
        (
            lambda: tiny_config(alignment={"student_layers": [-1, 1], "teacher_layers": [1, 2]}),
            "student_layers must go from shallow to deep",
        ),
    ],
)
def test_unknown_keys_and_contradictions_are_rejected(create, message):
    with pytest.raises(CONFIG_ERRORS) as error:
        create()
    assert message in str(error.value)


def test_file_restores_configuration(family, tmp_path):
    config = tiny_config(family)
    config.save_pretrained(tmp_path)
    assert RocketConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["policy_config"].keys() == config.policy_config.declared_keys() | {"model_type"}


def test_overrides_are_checked_like_values_of_file(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert RocketConfig.from_pretrained(tmp_path, alignment=None).alignment is None
    pairs = {"student_layers": [1, 2], "teacher_layers": [1, 2]}
    assert isinstance(RocketConfig.from_pretrained(tmp_path, alignment=pairs).alignment, AlignmentConfig)
    with pytest.raises(CONFIG_ERRORS, match="did you mean 'alignment'"):
        RocketConfig.from_pretrained(tmp_path, alignement=None)


def test_file_with_unknown_key_is_rejected(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chunksize": 8}))
    with pytest.raises(CONFIG_ERRORS, match="did you mean 'chunk_size'"):
        RocketConfig.from_pretrained(tmp_path)


def test_file_without_alignment_head_does_not_mention_it(tmp_path):
    tiny_config(alignment=None).save_pretrained(tmp_path)
    assert "alignment" not in (tmp_path / "config.json").read_text()


def test_published_sizes_are_the_defaults():
    config = Pi0Config()
    assert (config.depth, config.width, config.expert_width, config.image_grid) == (18, 2048, 1024, (16, 16))
    config = SmolVLAConfig()
    assert (config.depth, config.width, config.expert_width, config.image_grid) == (16, 960, 720, (8, 8))


def test_layer_numbers_are_resolved():
    assert [resolve_layer(layer, 18) for layer in (0, 1, 18, -1, -18, -19)] == [0, 1, 18, 18, 1, 0]
    for layer in (19, -20):
        with pytest.raises(UserError, match=f"layer {layer} does not exist: the model has 18 blocks"):
            resolve_layer(layer, 18)


def test_default_widths_and_pairs_are_those_of_rocket():
    """Check the published widths, floor(hidden_width * ratio), and the last layer pair of pi0."""
    increasing = AlignmentConfig().widths()
    assert increasing == [409, 591, 773, 955, 1137, 1319, 1501, 1683, 1865, 2048]
    assert AlignmentConfig(nesting="decreasing").widths() == increasing[::-1]
    assert AlignmentConfig(nesting="none").widths() == [2048] * 10
    assert AlignmentConfig(nesting="explicit", nested_widths=list(range(1, 11))).widths() == list(range(1, 11))
    assert AlignmentConfig().pairs(18)[-1] == (18, 24)


def test_fake_batch_is_reproducible_and_complete(config):
    batch, again = config.fake_batch(batch_size=3), config.fake_batch(batch_size=3)
    assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert not torch.equal(batch["actions"], config.fake_batch(batch_size=3, seed=1)["actions"])
    assert len(set(batch["attention_mask"].sum(1).tolist())) == 3
    assert batch["action_is_pad"].any() == (config.chunk_size > 1)
    check_batch(batch, set(batch), {"images": config.image_shape})


def test_wrong_batch_is_rejected(model):
    batch, steps = model.config.fake_batch(), model.config.chunk_size
    with pytest.raises(ValueError, match="a batch has no key 'image': did you mean 'images'"):
        model(**batch, image=batch["images"])
    with pytest.raises(ValueError, match="the batch lacks 'camera_mask'"):
        model.predict_action_chunk(**{key: value for key, value in batch.items() if key != "camera_mask"})
    with pytest.raises(
        ValueError, match=rf"batch\['actions'\] must be \(batch, {steps}, 5\), got \(2, {steps - 1}, 5\)"
    ):
        model(**batch | {"actions": batch["actions"][:, 1:]})
    with pytest.raises(ValueError, match="targets lack teacher layer 3"):
        model(**batch, targets={2: model.config.fake_targets()[2]})
    with pytest.raises(ValueError, match=r"targets\[2\] must be"):
        model(**batch, targets={layer: target[:, 1:] for layer, target in model.config.fake_targets().items()})
    with pytest.raises(ValueError, match="alignment head needs `targets`, the teacher's features"):
        model.train()(**batch)
