"""`rocket-hf train` reads cameras, dimensions, names, rate and task of the robot from the dataset."""

import json
from types import SimpleNamespace

import pytest

from rocket_hf.commands import main as rocket_hf
from rocket_hf.evaluation.trained_policy import find_trained_policy, load_unmerged_checkpoint
from rocket_hf.training.recipe_files import read_vla_recipe
from tests.arm import ARM_JOINTS, write_arm_dataset

from .conftest import journal_records, run_training, set_options

QUICK = {
    "run__steps": 2, "run__batch_size": 4, "run__save_every": 2, "run__log_every": 1, "run__validation_samples": 4,
    "data__workers": 0, "data__validation": 0.34, "alignment": None, "parts__heads": "full",
}  # fmt: skip


@pytest.fixture(scope="module")
def arm_dataset(tmp_path_factory):
    return write_arm_dataset(tmp_path_factory.mktemp("datasets") / "arm", episodes=3, frames=10, size=(24, 32))


@pytest.fixture(scope="module")
def arm_run(arm_dataset, policies, tmp_path_factory):
    """A run that starts from a policy for five actions without names, at an unknown rate."""
    out = tmp_path_factory.mktemp("runs") / "arm"
    outcome = run_training(
        "--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", arm_dataset, "--out", out,
        *set_options(**QUICK),
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    return SimpleNamespace(out=out, stdout=outcome.stdout)


def test_training_compares_the_robot_of_the_dataset_with_that_of_the_policy(arm_run):
    devices, *lines = arm_run.stdout.splitlines()
    assert devices.startswith("1 process on 1 machine")
    assert lines[0].split() == ["policy", "dataset", "maximum"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:6]}
    assert rows["action_dim"] == ["5", "6", "8"] and rows["fps"] == ["-", "30", "-"]
    assert f"action_names: {', '.join(ARM_JOINTS)}" in lines
    assert "example_task: pick up the cube" in lines and "datasets: arm" in lines


def test_names_task_dataset_and_rate_are_in_config_validation_lines_and_journal(arm_run):
    config = json.loads((arm_run.out / "policy" / "config.json").read_text())
    expected = {
        "cameras": ["front", "wrist"], "state_dim": 6, "action_dim": 6, "state_names": ARM_JOINTS,
        "action_names": ARM_JOINTS, "fps": 30, "example_task": "pick up the cube", "datasets": ["arm"],
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    records = journal_records(arm_run.out)
    assert {name: records[0]["robot"][name] for name in expected} == expected
    (validation,) = [line for line in records if "validation/error" in line]
    assert {f"validation/{joint}" for joint in ARM_JOINTS} <= validation.keys()
    recipe = read_vla_recipe(str(arm_run.out / "recipe.yaml"))
    assert recipe.robot.action_names == ARM_JOINTS, "the run must not depend on the dataset when it is loaded"
    model, _ = load_unmerged_checkpoint(find_trained_policy(arm_run.out / "checkpoints" / "step-00000002"))
    assert list(model.config.action_names) == ARM_JOINTS and model.config.fps == 30


def test_training_prints_the_errors_of_two_baselines_once(arm_run):
    (note,) = [line for line in arm_run.stdout.splitlines() if "baselines" in line]
    assert note.startswith("note: validation error of baselines: hold still ") and ", mean action " in note
    assert sum("baselines" in line.get("note", "") for line in journal_records(arm_run.out)) == 1


def test_card_shows_names_rate_and_task(arm_run, tmp_path):
    words = ["publish", str(arm_run.out), "--to", str(tmp_path / "published"), "--base", "ada/base"]
    assert rocket_hf([*words, "--license", "apache-2.0"]) == 0
    card = (tmp_path / "published" / "README.md").read_text()
    assert "| control rate | 30 Hz |" in card and f"6 dimensions: {', '.join(ARM_JOINTS)}" in card
    assert 'task="pick up the cube"' in card


def test_resumed_run_keeps_the_robot_with_which_it_was_started(arm_run, arm_dataset, policies):
    outcome = run_training(
        "--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", arm_dataset, "--out", arm_run.out, "--resume",
        *set_options(**(QUICK | {"run__steps": 3})),
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    assert sum("robot" in line for line in journal_records(arm_run.out)) == 1


def test_cameras_above_the_limit_of_the_policy_are_reported(arm_dataset, policies, tmp_path):
    outcome = run_training(
        "--recipe", "tiny", "--policy", policies("openvla"), "--dataset", arm_dataset, "--out", tmp_path / "run",
        "--dry-run", *set_options(**QUICK),
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    assert "cameras not used, because this policy reads at most 1: wrist" in outcome.stdout


@pytest.mark.needs_lerobot
def test_lerobot_rollout_maps_actions_by_the_names_of_the_policy(arm_run):
    from lerobot.configs import PreTrainedConfig
    from lerobot.rollout.context import _resolve_action_key_order
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(arm_run.out / "policy", cli_overrides=["--device=cpu"])
    assert config.action_feature_names == ARM_JOINTS
    robot_order = ARM_JOINTS[::-1]  # the robot lists its motors in another order than the dataset
    assert _resolve_action_key_order(config.action_feature_names, robot_order) == ARM_JOINTS
