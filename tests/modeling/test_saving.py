"""Tests of saving and loading: shards, dtypes, alignment heads, and `AutoModel` without rocket_hf."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from rocket_hf.errors import UserError
from rocket_hf.export.policy_folder import export_policy, shipped_files
from rocket_hf.modeling.configuration_rocket import AlignmentConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny import character_tokenizer, tiny_config, tiny_statistics

from .conftest import random_model


def predict(model, batch: dict) -> torch.Tensor:
    inputs = {key: value for key, value in batch.items() if key not in ("actions", "action_is_pad")}
    return model.predict_action_chunk(**inputs, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard", ["50MB", "100KB"])
def test_loaded_weights_equal_saved_weights(model, tmp_path, dtype, shard):
    model = model.for_inference().to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "100KB")
    loaded = RocketForActionPrediction.from_pretrained(tmp_path)
    assert loaded.dtype == dtype and not loaded.training
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    batch = model.config.fake_batch()
    assert torch.equal(predict(loaded, batch), predict(model, batch))


def test_checkpoint_keeps_alignment_head_in_float32(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = RocketForActionPrediction.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.policy.embed_tokens.weight.dtype == torch.bfloat16
    head = loaded.alignment_head.state_dict()
    for name, weight in model.alignment_head.state_dict().items():
        assert torch.equal(head[name], weight), name


def test_device_map_auto_gives_same_actions(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    loaded = RocketForActionPrediction.from_pretrained(tmp_path, device_map="auto")
    batch = model.config.fake_batch()
    device = next(loaded.parameters()).device
    actions = predict(loaded, {key: value.to(device) for key, value in batch.items()})
    torch.testing.assert_close(actions.cpu(), predict(model, batch), atol=1e-4, rtol=1e-4)


def test_checkpoint_loads_without_alignment_head(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = RocketForActionPrediction.from_pretrained(tmp_path, alignment=None)
    assert loaded.alignment_head is None
    batch = model.config.fake_batch()
    assert torch.equal(predict(loaded, batch), predict(model, batch))


def test_policy_loads_with_new_alignment_head(family, tmp_path):
    """Check that the new head has Xavier-uniform weights, zero biases and unit norms."""
    config = tiny_config(family, alignment=None)
    model = random_model(config)
    model.save_pretrained(tmp_path)
    alignment = AlignmentConfig(student_layers=[1, 3], teacher_layers=[2, 4], hidden_width=500, target_width=400)
    loaded = RocketForActionPrediction.from_pretrained(tmp_path, alignment=alignment)
    projector = loaded.alignment_head.projectors[0]
    bound = (6 / (500 + 400)) ** 0.5
    assert bound * 0.99 < projector.fc2.weight.abs().max() <= bound
    assert projector.fc2.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not projector.fc1.bias.any() and not projector.fc2.bias.any()
    assert (projector.norm.weight == 1).all() and not projector.norm.bias.any()
    batch = config.fake_batch()
    assert torch.equal(predict(loaded, batch), predict(model, batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("policy.action_in.bias"), "1 missing: policy.action_in.bias"),
        (lambda weights: weights.update({"policy.extra": torch.zeros(1)}), "1 unexpected: policy.extra"),
        (lambda weights: weights.pop("alignment_head.projectors.0.fc1.bias"), "1 missing: alignment_head"),
        (
            lambda weights: weights.update({"policy.action_in.bias": torch.zeros(3)}),
            "1 of another shape: policy.action_in.bias",
        ),
    ],
)
def test_missing_unexpected_and_misshapen_weights_are_errors(tmp_path, change, message):
    random_model(tiny_config()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        RocketForActionPrediction.from_pretrained(tmp_path)


def test_initial_weights_follow_published_initialization(config):
    torch.manual_seed(0)
    model = RocketForActionPrediction(config)
    zero_norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, GemmaRMSNorm)}
    for name, weight in model.state_dict().items():
        if name in zero_norms or "modulation" in name or name.endswith("bias"):
            assert not weight.any(), name
        elif name.startswith("policy.") and "norm" in name.split(".")[-2]:
            assert (weight == 1).all(), name
        elif name.startswith("policy.") and weight.dim() > 1:
            assert weight.std().item() == pytest.approx(0.02, rel=0.3), name


def test_alignment_head_with_other_projectors_is_rejected(tmp_path):
    pairs = {
        "student_layers": [1, 2],
        "teacher_layers": [1, 2],
        "hidden_width": 8,
        "target_width": 8,
        "nesting": "none",
    }
    random_model(tiny_config(alignment=pairs | {"projector": "independent"})).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"unexpected: alignment_head\.projectors\.1"):
        RocketForActionPrediction.from_pretrained(tmp_path, alignment=pairs)


@pytest.fixture
def published(model, tmp_path) -> Path:
    config = model.config
    processor = RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config))
    return export_policy(model, processor, tmp_path / "policy")


def test_exported_folder_has_no_trace_of_alignment_head(published):
    assert "alignment" not in (published / "config.json").read_text()
    with safe_open(published / "model.safetensors", "pt") as file:
        assert all(name.startswith("policy.") for name in file.keys())  # noqa: SIM118
    assert {path.name for path in shipped_files()} <= {path.name for path in published.iterdir()}
    assert str(published.parent) not in "".join(path.read_text() for path in published.glob("*.json"))


def test_export_never_overwrites(published, model):
    processor = RocketProcessor.for_config(model.config, character_tokenizer(), tiny_statistics(model.config))
    before = sorted(path.name for path in published.iterdir())
    with pytest.raises(UserError, match="exists and is not empty"):
        export_policy(model, processor, published)
    assert sorted(path.name for path in published.iterdir()) == before
    assert [path.name for path in published.parent.iterdir()] == ["policy"]


CLEAN_PROCESS = """
import sys
sys.modules["rocket_hf"] = sys.modules["lerobot"] = None  # importing either raises
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoProcessor

folder, out = sys.argv[1:]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(config).__module__.startswith("transformers_modules.")
assert type(model.config) is type(config)
draw = torch.Generator().manual_seed(3)
images = {name: torch.randint(0, 256, (3, 40, 60), generator=draw, dtype=torch.uint8) for name in config.cameras}
inputs = processor(images=images, task="open the drawer", state=torch.linspace(-1, 1, config.state_dim))
actions = model.predict_action_chunk(**inputs, generator=torch.Generator().manual_seed(0))
save_file({"actions": processor.unnormalize_actions(actions).contiguous()}, out)
"""


def test_exported_policy_gives_same_actions_in_clean_process(published, model, tmp_path):
    """Load with AutoConfig, AutoModel and AutoProcessor in a process that cannot import rocket_hf."""
    out = tmp_path / "actions.safetensors"
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CLEAN_PROCESS, published, out]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "You are using a model of type" not in result.stderr and "Auto classes" not in result.stderr

    config = model.config
    processor = RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config))
    draw = torch.Generator().manual_seed(3)
    images = {name: torch.randint(0, 256, (3, 40, 60), generator=draw, dtype=torch.uint8) for name in config.cameras}
    inputs = processor(images=images, task="open the drawer", state=torch.linspace(-1, 1, config.state_dim))
    expected = processor.unnormalize_actions(
        model.predict_action_chunk(**inputs, generator=torch.Generator().manual_seed(0))
    )
    torch.testing.assert_close(load_file(out)["actions"], expected, atol=1e-6, rtol=1e-5)


def test_missing_tokenizer_is_one_sentence(published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "copy" / "policy")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"^\S+/policy has no tokenizer\.json: download or export the policy again$"):
        RocketProcessor.from_pretrained(folder)
