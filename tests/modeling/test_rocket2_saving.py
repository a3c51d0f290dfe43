"""ROCKET-2 is saved and loaded strictly, and by AutoModel where this package is missing."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from rocket_hf.export.export_files import ROCKET2_CLASSES, shipped_files, write_rocket2_files
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction

from .rocket2_tiny import goal_at, random_model


def act(model, batch) -> torch.Tensor:
    state, draw, done = model.initial_state(2), torch.Generator().manual_seed(0), []
    for step in range(batch["images"].shape[1]):
        action, state = model.step(batch["images"][:, step], goal_at(batch, step), state, generator=draw)
        done.append(action)
    return torch.stack(done)


@pytest.fixture(scope="module")
def model() -> Rocket2ForActionPrediction:
    return random_model()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder


def test_weights_come_back_bit_for_bit(model, saved):
    loaded = Rocket2ForActionPrediction.from_pretrained(saved)
    assert not loaded.training
    assert loaded.config.to_dict() == model.config.to_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    assert not loaded.views.rgb.patch_embedding.weight.requires_grad


def test_the_columns_of_actions_keep_their_order(tmp_path):
    """Transformers sorts the keys of what it writes."""
    changes = {"action_factors": {"walk": 2, "turn": 9, "strafe": 3}, "rest_action": [1, 4, 2]}
    random_model(**changes).save_pretrained(tmp_path)
    loaded = Rocket2ForActionPrediction.from_pretrained(tmp_path).config
    assert list(loaded.factors.items()) == list(changes["action_factors"].items())
    assert loaded.rest_action == changes["rest_action"]


def test_heads_may_be_left_behind_or_new_but_only_whole(saved, tmp_path):
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


def test_new_weights_keep_the_size_of_what_goes_through():
    """So that narrow models train: views, temporal stream and heads start neither silent nor loud."""
    torch.manual_seed(0)
    model = Rocket2ForActionPrediction(random_model().config)
    mixed, written = (model.temporal.blocks[0].attention.get_submodule(name) for name in ("mixture", "value"))
    torch.testing.assert_close(mixed.weight.norm(dim=1), torch.full((20,), 0.1))
    torch.testing.assert_close(written.weight.norm(dim=1), torch.full((32,), 0.5**0.5))
    batch = model.config.fake_batch()
    with torch.no_grad():
        output = model.eval()(**batch)
    even = output.logits["turn"].softmax(-1)
    assert (even - 0.2).abs().max() < 0.05


STRANGER = """
import sys
sys.modules["rocket_hf"] = sys.modules["lerobot"] = sys.modules["timm"] = None  # importing any raises
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

folder, out = sys.argv[1:]
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules.")
state, draw, done = model.initial_state(2), torch.Generator().manual_seed(0), []
goal, pixels = model.no_goal(2), torch.Generator().manual_seed(1)
for step in range(4):
    images = torch.randint(0, 256, (2, 3, *config.image_size), generator=pixels, dtype=torch.uint8)
    action, state = model.step(images, goal, state, generator=draw)
    done.append(action)
save_file({"actions": torch.stack(done), "seen": state.seen["point"]}, out)
"""


def test_a_stranger_without_this_package_steps_the_same(model, tmp_path):
    """AutoConfig and AutoModel in a process that cannot import rocket_hf; the policy shows where it sees its goal."""
    folder, out = tmp_path / "policy", tmp_path / "actions.safetensors"
    policy = model.for_inference(keep=["visibility", "point"])
    policy.save_pretrained(folder)
    write_rocket2_files(folder, policy.config)
    code = {path.name for path in shipped_files(ROCKET2_CLASSES)}
    assert {path.name for path in folder.iterdir()} == code | {"config.json", "model.safetensors"}
    assert not code & {"modeling_rocket.py", "policy_pi0.py"}

    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", STRANGER, folder, out], check=True, env=environment, cwd=tmp_path)

    state, draw, done = model.initial_state(2), torch.Generator().manual_seed(0), []
    goal, pixels = model.no_goal(2), torch.Generator().manual_seed(1)
    for _ in range(4):
        images = torch.randint(0, 256, (2, 3, *model.config.image_size), generator=pixels, dtype=torch.uint8)
        action, state = model.step(images, goal, state, generator=draw)
        done.append(action)
    found = load_file(out)
    assert torch.equal(found["actions"], torch.stack(done))
    torch.testing.assert_close(found["seen"], state.seen["point"], atol=1e-6, rtol=1e-5)
