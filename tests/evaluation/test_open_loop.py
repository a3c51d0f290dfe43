"""`rocket-hf eval POLICY --dataset D`: errors of recorded actions, compared with values computed by hand."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import stats

from rocket_hf.commands import main
from rocket_hf.evaluation.open_loop_report import PLOT, REPORT, mean_with_interval
from rocket_hf.export.policy_folder import export_policy
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny import character_tokenizer, tiny_config
from rocket_hf.training.data.dataset_statistics import compute_dataset_statistics
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.data.mixture import split_episodes
from rocket_hf.training.recipe import DatasetConfig, VLARecipe
from rocket_hf.training.recipe_files import write_recipe
from tests.arm import ARM_JOINTS, write_arm_dataset

ROBOT = {"cameras": ["front", "wrist"], "state_dim": 6, "action_dim": 6, "chunk_size": 4}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_arm_dataset(tmp_path_factory.mktemp("datasets") / "arm", episodes=4, frames=10, size=(24, 32))


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """A run with an untrained policy, whose recipe holds out episodes of the dataset."""
    folder = tmp_path_factory.mktemp("runs") / "arm"
    torch.manual_seed(0)
    policy = RocketForActionPrediction(tiny_config("openvla-oft", alignment=None, **ROBOT)).eval()
    statistics = compute_dataset_statistics([RobotDataset(DatasetConfig(id=str(dataset)), policy.config)])
    processor = RocketProcessor.for_config(policy.config, character_tokenizer(), statistics, max_prompt_length=80)
    folder.mkdir()
    export_policy(policy, processor, folder / "policy")
    recipe = VLARecipe(name="arm", policy="base")
    recipe.data.datasets, recipe.data.validation = [DatasetConfig(id=str(dataset))], 0.5
    write_recipe(recipe, folder / "recipe.yaml")
    return folder


def evaluate(capsys, *arguments):
    code = main(["eval", *map(str, arguments)])
    return code, capsys.readouterr()


def errors_by_hand(folder, dataset, episodes, execute):
    """Return the mean absolute error of the policy, (episodes, joints), frame by frame, without batches."""
    policy = RocketForActionPrediction.from_pretrained(folder / "policy")
    processor = RocketProcessor.from_pretrained(folder / "policy")
    data = RobotDataset(DatasetConfig(id=str(dataset)), policy.config)
    rows = []
    for episode in episodes:
        distances = []
        for start in data.frame_range(episode)[::execute]:
            sample = data.sample(start)
            chunk = policy.predict_action_chunk(**processor(sample["images"], sample["task"], sample["state"]))
            distance = (processor.unnormalize_actions(chunk)[0] - sample["actions"]).abs()[:execute]
            distances.append(distance[~sample["action_is_pad"][:execute]])
        rows.append(torch.cat(distances).mean(0).detach().numpy())
    return np.stack(rows)


@pytest.mark.parametrize("execute", [None, 3])
def test_errors_of_held_out_episodes_equal_those_by_hand(execute, run, dataset, tmp_path, capsys):
    options = ["--execute", execute] if execute else []
    code, printed = evaluate(capsys, run, "--dataset", dataset, "--out", tmp_path, "--parallel", 2, *options)
    assert code == 0, printed.err
    _, held_out = split_episodes(range(4), 0.5, 42)
    values = json.loads((tmp_path / REPORT).read_text())
    assert [entry["episode"] for entry in values["episodes"]] == held_out and len(held_out) == 2
    assert values["frames"] == 20
    expected = errors_by_hand(run, dataset, held_out, execute or 4)
    for row, entry in zip(expected, values["episodes"], strict=True):
        assert list(entry["errors"]["policy"]) == ARM_JOINTS
        assert list(entry["errors"]["policy"].values()) == pytest.approx(row.tolist(), rel=1e-4)
    for number, joint in enumerate(ARM_JOINTS):
        assert values["errors"]["policy"][joint]["mean"] == pytest.approx(expected[:, number].mean(), rel=1e-4)
    assert "held out by the policy's run" in printed.out
    assert "| joint | policy | hold still | mean action | nearest neighbor |" in printed.out
    assert "hold still repeats the current state" in printed.out
    with Image.open(tmp_path / PLOT) as plot:
        assert plot.format == "PNG" and plot.width > 800
        assert len(np.unique(np.asarray(plot.convert("L")))) > 20, "the plot must not be empty"


def test_baselines_of_a_policy_without_a_run_leave_out_the_evaluated_episode(run, dataset, tmp_path, capsys):
    code, printed = evaluate(capsys, run / "policy", "--dataset", dataset, "--out", tmp_path / "run")
    assert code == 0, printed.err
    policy = shutil.copytree(run / "policy", tmp_path / "published")
    code, printed = evaluate(capsys, policy, "--dataset", dataset, "--out", tmp_path / "alone", "--episodes", 3)
    assert code == 0, printed.err
    values = json.loads((tmp_path / "alone" / REPORT).read_text())
    assert [entry["episode"] for entry in values["episodes"]] == [0, 1, 2]
    assert "the policy's training episodes are unknown" in printed.out
    data = RobotDataset(DatasetConfig(id=str(dataset)), tiny_config("openvla-oft", alignment=None, **ROBOT))
    actions = data.actions.double().numpy()
    for episode in range(3):
        own = np.isin(np.arange(40), data.frame_range(episode))
        expected = abs(actions[own] - actions[~own].mean(axis=0)).mean(axis=0)
        errors = values["episodes"][episode]["errors"]
        assert list(errors["mean action"].values()) == pytest.approx(expected.tolist(), rel=1e-4)
        assert max(errors["nearest neighbor"].values()) > 0, "the episode itself would have no error"


def test_intervals_are_those_of_students_t_distribution():
    values = [1.0, 2.0, 4.0, 4.5]
    interval = mean_with_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((2.875, low, high))
    assert mean_with_interval([1.5]).format() == "1.5 (one episode)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "reach-v3"], "--tasks is not an option for --dataset: remove it"),
        (["--env", "metaworld"], "--env is not an option for --dataset: remove it"),
        (["--against", "other"], "--against is not an option for --dataset: remove it"),
        (["--execute", "9"], "--execute must be 1 to 4, the length of this policy's chunks, not 9"),
        (["--cameras", "front=top"], "has no camera 'top'"),
        (["--episodes", "0"], "--episodes must be at least 1"),
        (["--dataset", "./missing"], "the dataset './missing' is neither a local folder nor a Hub repository"),
    ],
)
def test_wrong_options_print_one_sentence(arguments, message, run, dataset, capsys):
    code, printed = evaluate(capsys, run, "--dataset", dataset, *arguments)
    assert code == 2 and message in printed.err
    assert printed.err.startswith("rocket-hf eval: ") and len(printed.err.splitlines()) == 1


def test_cameras_can_be_mapped_by_their_short_names(run, dataset, tmp_path, capsys):
    swapped = ["--cameras", "front=wrist,wrist=front"]
    for name, options in (("plain", []), ("swapped", swapped)):
        assert evaluate(capsys, run, "--dataset", dataset, "--out", tmp_path / name, *options)[0] == 0
    plain, other = (json.loads((tmp_path / name / REPORT).read_text())["errors"] for name in ("plain", "swapped"))
    assert plain["policy"] != other["policy"] and plain["hold still"] == other["hold still"]


def test_policy_of_another_rate_or_robot_is_rejected(run, dataset, tmp_path, capsys):
    for change, message in (({"fps": 10}, "at 10 Hz, but arm was recorded at 30 Hz"), ({"state_dim": 5}, "state")):
        policy = shutil.copytree(run / "policy", tmp_path / str(len(message)))
        config = json.loads((policy / "config.json").read_text())
        (policy / "config.json").write_text(json.dumps(config | change))
        code, printed = evaluate(capsys, policy, "--dataset", dataset)
        assert code == 2 and message in printed.err


def test_policy_that_predicts_non_finite_actions_is_rejected(run, dataset, tmp_path, capsys):
    policy = shutil.copytree(run / "policy", tmp_path / "broken")
    weights = load_file(policy / "model.safetensors")
    weights["policy.action_head.fc_out.bias"][0] = float("nan")
    save_file(weights, policy / "model.safetensors", {"format": "pt"})
    code, printed = evaluate(capsys, policy, "--dataset", dataset)
    assert code == 2 and "finite" in printed.err
