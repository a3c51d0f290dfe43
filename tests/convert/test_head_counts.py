"""Numbers of attention heads of converted policies: read, taken from published models, or asked for."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rocket_hf.bench.lerobot_tiny import lerobot_policy
from rocket_hf.convert.head_counts import LLAMA_DEFAULTS, SMOL_VISION_DEFAULTS, HeadCounts, stated_heads
from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_smolvla import SmolVLAConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.tiny import SMOLVLA_SIZES, tiny_config

from .test_lerobot import convert, save_lerobot_policy
from .test_openvla import convert as convert_openvla
from .test_openvla import openvla  # noqa: F401


@dataclass
class Source:
    """Folder of a lerobot policy, with the policy that was saved in it."""

    folder: Path
    policy: torch.nn.Module


def smolvla_source(tmp_path, vlm: dict | None, **sizes) -> Source:
    """Return a folder of lerobot's SmolVLA with weights from its own classes, and the configuration of its VLM."""
    torch.manual_seed(0)
    config = tiny_config(policy_config=SmolVLAConfig(**SMOLVLA_SIZES | sizes), alignment=None)
    policy = lerobot_policy(config)
    folder = save_lerobot_policy(policy, tmp_path)
    if vlm is not None:
        (tmp_path / "vlm").mkdir()
        (tmp_path / "vlm" / "config.json").write_text(json.dumps(vlm))
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"vlm_model_name": str(tmp_path / "vlm")}))
    return Source(folder, policy)


TEXT = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "rms_norm_eps": 1e-2}


@pytest.mark.needs_lerobot
def test_vision_tower_of_smolvlm2_2b_is_converted_with_16_heads(tmp_path):
    """Its features equal those of transformers' SmolVLM. The width is a multiple of 64, but the heads have 72."""
    vision = {"model_type": "smolvlm_vision", "image_size": 378, "patch_size": 14, "intermediate_size": 64}
    sizes = {"vision_width": 1152, "vision_heads": 16, "vision_depth": 1, "patch_size": 14, "image_size": 42}
    sizes |= {"pixel_shuffle": 3, "vision_mlp_width": 64}
    source = smolvla_source(tmp_path, {"text_config": TEXT, "vision_config": vision}, **sizes)
    assert convert(source.folder, tmp_path / "ours", heads=[]) == 0
    ours = RocketForActionPrediction.from_pretrained(tmp_path / "ours")
    assert ours.config.policy_config.vision_heads == 16
    images = torch.rand(2, 3, 42, 42)
    with torch.no_grad():
        theirs = source.policy.model.vlm_with_expert.get_vlm_model().vision_model(pixel_values=images * 2 - 1)
        torch.testing.assert_close(ours.policy.vision_tower(images), theirs.last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.needs_lerobot
def test_smolvla_settings_come_from_the_configuration_of_its_vlm(tmp_path):
    vision = {"hidden_size": 24, "num_attention_heads": 3}
    source = smolvla_source(tmp_path, {"text_config": TEXT, "vision_config": vision}, vision_heads=3)
    assert convert(source.folder, tmp_path / "ours", heads=[]) == 0
    policy = RocketForActionPrediction.from_pretrained(tmp_path / "ours").config.policy_config
    assert (policy.heads, policy.kv_heads, policy.head_dim, policy.vision_heads) == (4, 2, 8, 3)
    assert policy.rms_norm_eps == policy.expert_config.rms_norm_eps == 1e-2


@pytest.mark.needs_lerobot
def test_vlm_of_another_checkpoint_is_rejected(tmp_path, capsys):
    source = smolvla_source(tmp_path, {"text_config": TEXT | {"hidden_size": 960}, "vision_config": {}})
    vlm = str(tmp_path / "vlm")
    assert convert(source.folder, tmp_path / "ours", "--vlm", vlm, heads=["language=4", "vision=2"]) == 2
    assert f"the vision-language model {vlm} is not that of the checkpoint" in capsys.readouterr().err


@pytest.mark.needs_lerobot
def test_unknown_number_of_heads_is_asked_for(tmp_path, capsys):
    source = smolvla_source(tmp_path, None)
    assert convert(source.folder, tmp_path / "ours", heads=[]) == 2
    message = "the number of attention heads of the part 'language', which is 32 wide, is not stated"
    assert message in (printed := capsys.readouterr().err) and "pass --heads language=N" in printed
    assert convert(source.folder, tmp_path / "ours", heads=["language=4"]) == 2
    assert "pass --heads vision=N" in capsys.readouterr().err
    assert convert(source.folder, tmp_path / "ours", heads=["language=4", "vision=5"]) == 2
    assert "the part 'vision' cannot have 5 attention heads" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()
    assert convert(source.folder, tmp_path / "ours", heads=["language=4", "vision=2"]) == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tower=2", "this family has the parts language, vision"),
        ("vision", "the number of heads must be a positive integer"),
        ("vision=0", "the number of heads must be a positive integer"),
    ],
)
def test_malformed_heads_are_reported(tmp_path, capsys, value, message):
    (tmp_path / "config.json").write_text('{"type": "smolvla"}')
    assert convert(tmp_path, tmp_path / "ours", heads=[value]) == 2
    assert message in capsys.readouterr().err


def test_openvla_reads_heads_and_epsilon_from_its_text_config(openvla, tmp_path):  # noqa: F811
    """The policy would have a single head if heads had 128 dimensions, as in Llama-2."""
    assert convert_openvla("openvla", openvla, tmp_path / "ours", "--statistics", "a") == 0
    policy = RocketForActionPrediction.from_pretrained(tmp_path / "ours").config.policy_config
    assert (policy.heads, policy.kv_heads, policy.rms_norm_eps) == (2, 2, 1e-5)


def test_key_projections_without_a_whole_head_are_reported(openvla, tmp_path, capsys):  # noqa: F811
    """Such shapes used to end in a division by zero."""
    for shard in openvla.glob("model-*.safetensors"):
        weights = load_file(shard)
        for name in weights:
            if ".k_proj." in name:
                weights[name] = torch.zeros(48, 128)
        save_file(weights, shard)
    assert convert_openvla("openvla", openvla, tmp_path / "ours", "--statistics", "a") == 2
    assert "the part 'language' cannot have 2 attention heads" in capsys.readouterr().err


def test_missing_number_in_a_configuration_means_the_default_of_its_class():
    """The files of openvla-7b and SmolVLM2-2.2B leave out 32 and 16 heads."""
    from transformers import LlamaConfig
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    assert stated_heads({"model_type": "llama"}, 4096, LLAMA_DEFAULTS) == LlamaConfig().num_attention_heads
    assert stated_heads({"patch_size": 14}, 1152, SMOL_VISION_DEFAULTS) == SmolVLMVisionConfig().num_attention_heads
    assert stated_heads({"model_type": "llama"}, 2048, LLAMA_DEFAULTS) is None
    assert HeadCounts({"vision": 3}).of("vision", 48, {48: 6}, 2) == 3
    with pytest.raises(UserError, match="--heads vision=N"):
        HeadCounts().of("vision", 48, {1152: 16})
