"""Tests of saving and loading ROCKET-2, also with AutoModel in a process without rocket_hf."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from rocket_hf.export.policy_folder import shipped_files, write_rocket2_files
from rocket_hf.foreign_code import ROCKET2_CLASSES
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction

from .rocket2_tiny import random_rocket2


@pytest.fixture(scope="module")
def model() -> Rocket2ForActionPrediction:
    return random_rocket2()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder


def test_loaded_weights_equal_saved_weights(model, saved):
    loaded = Rocket2ForActionPrediction.from_pretrained(saved)
    assert not loaded.training
    assert loaded.config.to_dict() == model.config.to_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    assert not loaded.views.rgb.patch_embedding.weight.requires_grad


def test_order_of_action_factors_is_restored(tmp_path):
    """Use unsorted names, because transformers sorts the keys of dicts that it writes."""
    changes = {"action_factors": {"walk": 2, "turn": 9, "strafe": 3}, "rest_action": [1, 4, 2]}
    random_rocket2(**changes).save_pretrained(tmp_path)
    loaded = Rocket2ForActionPrediction.from_pretrained(tmp_path).config
    assert list(loaded.factors.items()) == list(changes["action_factors"].items())
    assert loaded.rest_action == changes["rest_action"]


def test_auxiliary_heads_may_be_dropped_or_new_only_as_a_whole(saved, tmp_path):
    assert not Rocket2ForActionPrediction.from_pretrained(saved, auxiliary_heads=()).auxiliary
    policy = Rocket2ForActionPrediction.from_pretrained(saved, auxiliary_heads=["point"])
    policy.save_pretrained(tmp_path / "policy")
    wider = Rocket2ForActionPrediction.from_pretrained(tmp_path / "policy", auxiliary_heads=["point", "box"])
    assert torch.equal(wider.auxiliary["point"].weight, policy.auxiliary["point"].weight)
    assert wider.auxiliary["box"].weight.abs().sum() > 0
    weights = load_file(tmp_path / "policy" / "model.safetensors")
    del weights["auxiliary.point.bias"]
    save_file(weights, tmp_path / "policy" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: auxiliary\.point\.bias"):
        Rocket2ForActionPrediction.from_pretrained(tmp_path / "policy")


def test_initial_weights_keep_scale_of_activations():
    """Check row norms and nearly uniform scores, without which narrow models do not train."""
    torch.manual_seed(0)
    model = Rocket2ForActionPrediction(random_rocket2().config)
    mixture, value = (model.temporal.blocks[0].attention.get_submodule(name) for name in ("mixture", "value"))
    torch.testing.assert_close(mixture.weight.norm(dim=1), torch.full((20,), 0.1))
    torch.testing.assert_close(value.weight.norm(dim=1), torch.full((32,), 0.5**0.5))
    batch = model.config.fake_batch()
    with torch.no_grad():
        output = model.eval()(**batch)
    probabilities = output.logits["turn"].softmax(-1)
    assert (probabilities - 0.2).abs().max() < 0.05


CLEAN_PROCESS = """
import sys
sys.modules["rocket_hf"] = sys.modules["lerobot"] = sys.modules["timm"] = None  # importing any raises
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

folder, out = sys.argv[1:]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules.")
state, draw, actions = model.initial_state(2), torch.Generator().manual_seed(0), []
goal, pixels = model.no_goal(2), torch.Generator().manual_seed(1)
for step in range(4):
    images = torch.randint(0, 256, (2, 3, *config.image_size), generator=pixels, dtype=torch.uint8)
    action, state = model.step(images, goal, state, generator=draw)
    actions.append(action)
save_file({"actions": torch.stack(actions), "point": state.seen["point"]}, out)
"""


def test_exported_policy_gives_same_actions_in_clean_process(model, tmp_path):
    """Load with AutoConfig and AutoModel in a process that cannot import rocket_hf; compare a kept head too."""
    folder, out = tmp_path / "policy", tmp_path / "actions.safetensors"
    policy = model.for_inference(keep=["visibility", "point"])
    policy.save_pretrained(folder)
    write_rocket2_files(folder, policy.config)
    code = {path.name for path in shipped_files(ROCKET2_CLASSES)}
    assert {path.name for path in folder.iterdir()} == code | {"config.json", "model.safetensors"}
    assert not code & {"modeling_rocket.py", "policy_pi0.py"}

    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", CLEAN_PROCESS, folder, out], check=True, env=environment, cwd=tmp_path)

    state, draw, actions = model.initial_state(2), torch.Generator().manual_seed(0), []
    goal, pixels = model.no_goal(2), torch.Generator().manual_seed(1)
    for _ in range(4):
        images = torch.randint(0, 256, (2, 3, *model.config.image_size), generator=pixels, dtype=torch.uint8)
        action, state = model.step(images, goal, state, generator=draw)
        actions.append(action)
    loaded = load_file(out)
    assert torch.equal(loaded["actions"], torch.stack(actions))
    torch.testing.assert_close(loaded["point"], state.seen["point"], atol=1e-6, rtol=1e-5)
