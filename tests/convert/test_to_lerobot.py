"""Folders for lerobot contain everything that its classes load, so that they work without a network."""

import json
import os
import subprocess
import sys

import pytest
import torch

from rocket_hf.bench.lerobot_tiny import CAMERAS
from rocket_hf.commands import main
from rocket_hf.export.policy_folder import export_policy
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_smolvla import SmolVLAConfig
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny import PI0_SIZES, SMOLVLA_SIZES, character_tokenizer, tiny_config, tiny_statistics

pytestmark = pytest.mark.needs_lerobot
SMOL = SMOLVLA_SIZES | {"expert_mlp_width": 256, "rms_norm_eps": 1e-4, "vision_heads": 3}
NAME = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
POLICIES = {
    "pi0": lambda: Pi0Config(variant="pi0", **PI0_SIZES),
    "pi05": lambda: Pi0Config(variant="pi05", **PI0_SIZES),
    "smolvla": lambda: SmolVLAConfig(vlm_model_name=NAME, **SMOL),
}

# lerobot's own class and processors, in a process that cannot open a connection.
PREDICT_IN_LEROBOT = """
import socket, sys
import torch

def refuse(*arguments, **options):
    raise AssertionError("a connection was opened")

socket.socket.connect = refuse
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

folder, inputs, output = sys.argv[1:]
config = PreTrainedConfig.from_pretrained(folder)
config.device = "cpu"
preprocess, postprocess = make_pre_post_processors(config, pretrained_path=folder)
inputs = torch.load(inputs)
noise = inputs.pop("noise")
batch = preprocess(inputs)
actions = None
if config.type == "smolvla":
    policy = get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
    actions = postprocess(policy.predict_action_chunk(batch, noise=noise))
torch.save({"tokens": batch["observation.language.tokens"], "actions": actions}, output)
"""


@pytest.fixture(params=POLICIES)
def policy(request, tmp_path):
    """Folder of a published policy."""
    torch.manual_seed(0)
    config = tiny_config(policy_config=POLICIES[request.param](), alignment=None)
    model = RocketForActionPrediction(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1 if request.param == "smolvla" and "norm" in name else 0, 0.2 if weight.dim() > 1 else 0.1)
    export_policy(
        model, RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config)), tmp_path / "ours"
    )
    return tmp_path / "ours"


def convert(source, destination, *options) -> int:
    return main(["convert", "to-lerobot", str(source), str(destination), *options])


def test_lerobot_loads_the_folder_without_network(policy, tmp_path, capsys, monkeypatch):
    """Tokens and, for SmolVLA, the actions of lerobot's policy equal ours.

    No file of the folder contains a path of this machine. The sizes of lerobot's pi0 and pi0.5 cannot be changed; their
    tiny versions are compared in test_lerobot.py.
    """
    monkeypatch.chdir(tmp_path)
    assert convert(policy, "lerobot") == 0
    printed = capsys.readouterr().out
    assert "tokenizer  lerobot/" in printed
    assert not [file for file in (tmp_path / "lerobot").rglob("*.json") if str(tmp_path) in file.read_text()]
    draw = torch.Generator().manual_seed(0)
    images, state = [torch.rand(3, 40, 64, generator=draw) for _ in CAMERAS], torch.randn(6, generator=draw)
    noise = torch.randn(1, 4, 8, generator=draw)
    inputs = dict(zip(CAMERAS, images, strict=True)) | {"observation.state": state, "task": "open it", "noise": noise}
    torch.save(inputs, tmp_path / "inputs.pt")
    command = [sys.executable, "-c", PREDICT_IN_LEROBOT, "lerobot", "inputs.pt", "outputs.pt"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = torch.load(tmp_path / "outputs.pt")

    model, processor = RocketForActionPrediction.from_pretrained(policy), RocketProcessor.from_pretrained(policy)
    ours = processor(images=dict(zip(processor.cameras, images, strict=True)), task="open it", state=state)
    length = int(ours["attention_mask"].sum())
    assert torch.equal(theirs["tokens"][:, :length], ours["input_ids"][:, :length])
    if model.config.policy_config.model_type == "rocket_smolvla":
        assert "vlm        lerobot/vlm" in printed and f"here --vlm {NAME}" in printed
        actions = processor.unnormalize_actions(model.predict_action_chunk(**ours, noise=noise))
        torch.testing.assert_close(theirs["actions"], actions, atol=1e-5, rtol=1e-5)


def test_given_names_are_written_for_lerobot(policy, tmp_path, capsys, monkeypatch):
    """A relative folder stays relative."""
    assert convert(policy, tmp_path / "first") == 0
    is_smolvla = (tmp_path / "first" / "vlm").exists()
    folder = "vlm" if is_smolvla else "tokenizer"
    (tmp_path / "first" / folder).rename(tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    assert convert(policy, tmp_path / "second", f"--{folder}", folder) == 0
    steps = json.loads((tmp_path / "second" / "policy_preprocessor.json").read_text())["steps"]
    names = [step["config"]["tokenizer_name"] for step in steps if step["registry_name"] == "tokenizer_processor"]
    assert names == [folder] and not (tmp_path / "second" / folder).exists()
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config.get("vlm_model_name") == (names[0] if is_smolvla else None)
    assert convert(policy, tmp_path / "third", "--tokenizer", "google/paligemma-3b-pt-224") == 0
    assert "google/paligemma-3b-pt-224" in (tmp_path / "third" / "policy_preprocessor.json").read_text()


def test_other_text_of_tasks_than_lerobots_is_rejected(policy, tmp_path, capsys):
    """lerobot strips underscores from tasks for pi0.5 only, and its classes have no setting for it."""
    file = policy / "processor_config.json"
    settings = json.loads(file.read_text())
    other = {"cleaned": "unchanged", "unchanged": "cleaned"}[settings["task_text"]]
    file.write_text(json.dumps(settings | {"task_text": other}))
    assert convert(policy, tmp_path / "lerobot") == 2
    message = capsys.readouterr().err
    assert f"has task_text='{other}', but lerobot always uses '{settings['task_text']}'" in message
    assert not (tmp_path / "lerobot").exists()


def test_vlm_of_other_sizes_is_rejected(policy, tmp_path, capsys):
    (tmp_path / "vlm").mkdir()
    text = {"model_type": "llama", "hidden_size": 960, "num_attention_heads": 15}
    (tmp_path / "vlm" / "config.json").write_text(json.dumps({"text_config": text, "vision_config": {}}))
    assert convert(policy, tmp_path / "lerobot", "--vlm", str(tmp_path / "vlm")) == 2
    message = capsys.readouterr().err
    assert "has other sizes than this policy" in message or "only SmolVLA has a vision-language model" in message
    assert not (tmp_path / "lerobot").exists()
