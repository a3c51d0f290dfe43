"""`rocket-hf adapt`: a policy learns a robot with other cameras, state and actions; PEFT puts it on its base again."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from rocket_hf.commands import main as rocket_hf
from rocket_hf.evaluation.trained_policy import find_origin, load_adapted
from rocket_hf.hub_cards.facts import Source
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.publishing.adapter import write_adapter
from rocket_hf.tiny_dataset import write_tiny_dataset

from .conftest import forget_processes, settings

QUICK = settings(
    run__steps=3, run__batch_size=4, run__save_every=3, run__log_every=3, run__validation_samples=4, data__workers=0
)
CAMERAS = {"top": (40, 40), "wrist": (32, 32)}


@pytest.fixture(scope="module")
def other_robot(tmp_path_factory):
    """Camera top instead of front, four numbers of state, three of action."""
    folder = tmp_path_factory.mktemp("datasets") / "other"
    return write_tiny_dataset(folder, cameras=CAMERAS, state_dim=4, action_dim=3)


def adapt(*words) -> int:
    forget_processes()
    try:
        return rocket_hf(["adapt", *map(str, words)])
    finally:
        forget_processes()


@pytest.mark.parametrize("family", ["smolvla", "openvla-oft"])
def test_an_adapter_of_a_new_robot_is_the_trained_policy(family, policies, other_robot, tmp_path, capsys):
    out, folder = tmp_path / "run", tmp_path / "adapter"
    assert adapt(policies(family), "--dataset", other_robot, "--out", out, *QUICK) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[1].split() == ["cameras", "front,", "wrist", "wrist,", "top", "-"]
    assert table[3].split()[:3] == ["action_dim", "5", "3"]

    model, _ = load_adapted(find_origin(out))
    folder.mkdir()
    adapter = write_adapter(model, Source("ada/base", "0" * 40), folder)
    assert ("policy.action_head.fc_out" in adapter.full) == (family == "openvla-oft")
    base = RocketForActionPrediction.from_pretrained(policies(family), alignment=None).for_robot(folder)
    loaded = PeftModel.from_pretrained(base, folder).eval()
    batch = model.config.fake_batch()
    if model.config.policy_config.draws_noise:
        batch["noise"] = torch.ones(2, model.config.chunk_size, model.config.policy_config.max_action_dim)
    expected = model.predict_action_chunk(**batch)
    torch.testing.assert_close(loaded.predict_action_chunk(**batch), expected, atol=1e-6, rtol=1e-5)
    assert expected.shape[-1] == 3

    merged = load_file(out / "policy" / "model.safetensors")
    config = json.loads((out / "policy" / "config.json").read_text())
    assert (config["cameras"], config["state_dim"], config["action_dim"]) == (["wrist", "top"], 4, 3)
    published = RocketForActionPrediction.from_pretrained(out / "policy")
    assert published.state_dict().keys() == merged.keys()
    torch.testing.assert_close(published.eval().predict_action_chunk(**batch), expected, atol=1e-5, rtol=1e-4)


def test_a_robot_that_the_backbone_cannot_drive_is_told_side_by_side(policies, tmp_path, capsys):
    data = write_tiny_dataset(tmp_path / "wide", episodes=1, cameras={"front": (32, 32)}, action_dim=20)
    assert adapt(policies("pi0"), "--dataset", data, "--out", tmp_path / "run", *QUICK) == 2
    printed = capsys.readouterr()
    assert (
        printed.err.strip() == "rocket-hf adapt: this policy cannot drive that robot: action_dim at most 8 against 20"
    )
    assert "action_dim  5             20             8" in printed.out
    assert not (tmp_path / "run").exists()


def test_new_layers_that_would_not_be_trained_are_refused(policies, other_robot, tmp_path, capsys):
    out = tmp_path / "run"
    frozen = ["--set", "parts.heads=frozen"]
    assert adapt(policies("openvla-oft"), "--dataset", other_robot, "--out", out, *QUICK, *frozen) == 2
    assert "the robot needs new layers, which parts.heads=frozen would not train" in capsys.readouterr().err
