"""`rocket-hf adapt` for a robot with other cameras, state and actions, and the exported adapter in PEFT."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from rocket_hf.commands import main as rocket_hf
from rocket_hf.evaluation.trained_policy import find_trained_policy, load_unmerged_checkpoint
from rocket_hf.hub_cards.facts import Source
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.publishing.package import write_adapter
from rocket_hf.tiny_dataset import write_tiny_dataset
from rocket_hf.training.recipe_files import read_recipe

from .conftest import reset_accelerate_state, set_options

QUICK_OPTIONS = set_options(
    run__steps=3, run__batch_size=4, run__save_every=3, run__log_every=3, run__validation_samples=4, data__workers=0
)
CAMERAS = {"top": (40, 40), "wrist": (32, 32)}


@pytest.fixture(scope="module")
def other_robot(tmp_path_factory):
    """Dataset with camera top instead of front, four state dimensions and three action dimensions."""
    folder = tmp_path_factory.mktemp("datasets") / "other"
    return write_tiny_dataset(folder, cameras=CAMERAS, state_dim=4, action_dim=3)


def adapt(*words) -> int:
    reset_accelerate_state()
    try:
        return rocket_hf(["adapt", *map(str, words)])
    finally:
        reset_accelerate_state()


@pytest.mark.parametrize("family", ["smolvla", "openvla-oft"])
def test_adapter_for_a_new_robot_equals_the_trained_policy(family, policies, other_robot, tmp_path, capsys):
    out, folder = tmp_path / "run", tmp_path / "adapter"
    assert adapt(policies(family), "--dataset", other_robot, "--out", out, *QUICK_OPTIONS) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[2].split() == ["cameras", "front,", "wrist", "wrist,", "top", "-"]
    assert table[4].split()[:3] == ["action_dim", "5", "3"]

    model, _ = load_unmerged_checkpoint(find_trained_policy(out))
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


def test_robot_with_too_many_action_dimensions_is_refused(policies, tmp_path, capsys):
    data = write_tiny_dataset(tmp_path / "wide", episodes=1, cameras={"front": (32, 32)}, action_dim=20)
    assert adapt(policies("pi0"), "--dataset", data, "--out", tmp_path / "run", *QUICK_OPTIONS) == 2
    printed = capsys.readouterr()
    assert printed.err.strip() == "train.py: the robot exceeds the limits of this policy: action_dim is 20, at most 8"
    assert "action_dim  5             20       8" in printed.out
    assert not (tmp_path / "run").exists()


def test_new_layers_that_would_not_train_are_refused(policies, other_robot, tmp_path, capsys):
    out = tmp_path / "run"
    frozen = ["--set", "parts.heads=frozen"]
    assert adapt(policies("openvla-oft"), "--dataset", other_robot, "--out", out, *QUICK_OPTIONS, *frozen) == 2
    error = capsys.readouterr().err
    assert "the robot needs new layers (" in error and "which parts.heads=frozen does not train" in error


def test_dataset_whose_name_looks_like_yaml_is_opened_literally(policies, other_robot, tmp_path, capsys):
    """YAML would read ` #3` as a comment, so that the folder without it would be described instead."""
    decoy = write_tiny_dataset(tmp_path / "run", episodes=1, cameras=CAMERAS, state_dim=2, action_dim=2)
    dataset = shutil.copytree(other_robot, tmp_path / "run #3")
    assert adapt(policies("smolvla"), "--dataset", dataset, "--out", tmp_path / "out #1", *QUICK_OPTIONS) == 0
    assert capsys.readouterr().out.splitlines()[4].split()[:3] == ["action_dim", "5", "3"]
    recipe = read_recipe(str(tmp_path / "out #1" / "recipe.yaml"))
    assert recipe.data.datasets[0].id == str(dataset) != str(decoy)
