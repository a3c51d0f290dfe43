"""Tests that the policies which version 0.1.0 published keep loading and keep giving the same actions.

The folder `published_by_0_1_0` contains two of them, a VLA and a ROCKET-2; its README.md describes how they were
recorded. The file `self_test.safetensors` of each contains fixed inputs and the actions that version 0.1.0 predicted.
"""

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rocket_hf import Rocket2ForActionPrediction, RocketForActionPrediction, RocketProcessor
from rocket_hf.commands import main
from rocket_hf.errors import UserError

RECORDED = Path(__file__).resolve().parent / "published_by_0_1_0"
VLA, ROCKET2 = RECORDED / "vla", RECORDED / "rocket2"


def assert_vla_repeats_recorded_actions(folder: Path, model, processor) -> None:
    """Compare a VLA's inputs and its actions in robot units with the recorded ones."""
    with safe_open(folder / "self_test.safetensors", "pt") as file:
        task = json.loads(file.metadata()["self_test"])["task"]
        recorded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (`file` is not a dict)
    images = {camera: recorded[f"image.{camera}"] for camera in model.config.cameras}
    inputs = processor(images=images, task=task, state=recorded["state"])
    # The recording holds the resized images as uint8, so the policy gets those instead of the processor's floats.
    pixels = inputs.pop("images") * 255
    torch.testing.assert_close(pixels, recorded["batch.images"].float(), atol=0.6, rtol=0)
    for name, value in inputs.items():
        torch.testing.assert_close(value, recorded[f"batch.{name}"], atol=1e-5, rtol=1e-5)
    chunk = model.predict_action_chunk(**inputs, images=recorded["batch.images"], noise=recorded["batch.noise"])
    actions = processor.unnormalize_actions(chunk)
    torch.testing.assert_close(actions, recorded["robot_actions"], atol=1e-4, rtol=1e-4)


def assert_rocket2_repeats_recorded_actions(folder: Path, model) -> None:
    """Repeat the recorded steps, and compare actions and auxiliary predictions (`state.seen`) with the recording."""
    recorded = load_file(folder / "self_test.safetensors")
    environments, steps = recorded["images"].shape[:2]
    steps_per_goal = steps // recorded["goal_images"].shape[1]
    generators = [torch.Generator().manual_seed(number) for number in range(environments)]
    state = model.initial_state(environments)
    for step in range(steps):
        goal = None  # the policy keeps the goal of the previous step
        if step % steps_per_goal == 0:
            parts = {part: recorded[f"goal_{part}"] for part in ("images", "masks", "interactions")}
            parts = {part: values[:, step // steps_per_goal] for part, values in parts.items()}
            goal = dataclasses.replace(model.no_goal(environments), **parts)
        actions, state = model.step(recorded["images"][:, step], goal, state, generator=generators)
        assert torch.equal(actions, recorded["choices"][:, step])
        assert state.seen.keys() == {"visibility", "point"}
        for head, values in state.seen.items():
            torch.testing.assert_close(values, recorded[f"seen.{head}"][:, step], atol=1e-4, rtol=1e-4)


CLEAN_PROCESS = (
    """
import sys
sys.modules.update(dict.fromkeys(["rocket_hf", "lerobot", "timm"]))  # importing any of these raises

import dataclasses, json
from pathlib import Path
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor
"""
    + inspect.getsource(assert_vla_repeats_recorded_actions)
    + inspect.getsource(assert_rocket2_repeats_recorded_actions)
    + """
folder = Path(sys.argv[1])
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules.")
model.self_test()
if folder.name == "vla":
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(processor).__module__.startswith("transformers_modules.")
    assert_vla_repeats_recorded_actions(folder, model, processor)
else:
    assert_rocket2_repeats_recorded_actions(folder, model)
print("passed", folder.name)
"""
)


@pytest.mark.parametrize("folder", [VLA, ROCKET2], ids=lambda folder: folder.name)
def test_policy_published_by_0_1_0_loads_in_clean_process(folder, tmp_path):
    """Check that a process which cannot import rocket_hf loads the policy with `AutoModel` and gets its actions."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CLEAN_PROCESS, str(folder)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["passed", folder.name]


def test_vla_published_by_0_1_0_loads_with_own_classes():
    """Check that rocket_hf's own classes load the VLA, and that it passes its self-test and repeats its actions."""
    model = RocketForActionPrediction.from_pretrained(VLA)
    processor = RocketProcessor.from_pretrained(VLA)
    assert model.alignment_head is None
    model.self_test()
    assert_vla_repeats_recorded_actions(VLA, model, processor)


def test_rocket2_published_by_0_1_0_loads_with_own_classes():
    """Check that rocket_hf's own class loads the ROCKET-2, and that it passes its self-test and repeats its actions."""
    model = Rocket2ForActionPrediction.from_pretrained(ROCKET2)
    model.self_test()
    assert_rocket2_repeats_recorded_actions(ROCKET2, model)


@pytest.mark.parametrize("folder", [VLA, ROCKET2], ids=lambda folder: folder.name)
def test_verify_accepts_policy_published_by_0_1_0(folder, capsys):
    """Check that `rocket-hf verify` succeeds and names the folder."""
    assert main(["verify", str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out


def test_constant_dimension_of_policy_published_by_0_1_0_keeps_its_numbers(tmp_path):
    """Version 0.1.0 stored the deviation 0: the action is the mean, and the state is divided by 1e-8."""
    folder = shutil.copytree(VLA, tmp_path / "vla")
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    for part in ("state", "action"):
        settings["statistics"][part]["std"][1] = 0.0
        assert settings[f"{part}_normalization"] == "mean_std"
    file.write_text(json.dumps(settings))
    processor = RocketProcessor.from_pretrained(folder)
    state_mean, action_mean = (torch.tensor(settings["statistics"][part]["mean"]) for part in ("state", "action"))
    state, action = torch.ones(settings["state_dim"]), torch.ones(settings["action_dim"])
    state[1] = state_mean[1]
    assert processor.normalize_state(state)[1] == 0
    state[1] += 0.5
    assert processor.normalize_state(state)[1] == (state[1] - state_mean[1]) / torch.tensor(1e-8)
    assert processor.unnormalize_actions(action)[1] == action_mean[1]
    processor.save_pretrained(tmp_path / "saved")
    saved = RocketProcessor.from_pretrained(tmp_path / "saved")
    assert torch.equal(saved.unnormalize_actions(action), processor.unnormalize_actions(action))
    assert torch.equal(saved.normalize_state(state), processor.normalize_state(state))


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_wrong_deviations_of_policy_published_by_0_1_0_are_refused(value, tmp_path):
    folder = shutil.copytree(VLA, tmp_path / "vla")
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["statistics"]["action"]["std"][1] = value
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"is {value:g} in dimension 1"):
        RocketProcessor.from_pretrained(folder)


def test_deviation_of_zero_is_refused_in_policies_of_this_version(tmp_path):
    RocketProcessor.from_pretrained(VLA).save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["statistics"]["action"]["std"][1] = 0.0
    file.write_text(json.dumps(settings))
    with pytest.raises(UserError, match="is 0 in dimension 1, but deviations must be positive"):
        RocketProcessor.from_pretrained(tmp_path)
