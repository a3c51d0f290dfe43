"""Training on datasets of several robots: arms with 6 and 7 joints, recorded at 10 and 20 Hz."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rocket_hf.commands import main as rocket_hf
from rocket_hf.errors import UserError
from rocket_hf.modeling.flow_matching import flow_matching_loss
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny import character_tokenizer, tiny_config
from rocket_hf.training.data.dataset_statistics import compute_dataset_statistics, unit_differences
from rocket_hf.training.data.frame_table import MixtureEntry
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.data.loader import make_loader
from rocket_hf.training.data.mixture import FrameRanges, MixtureOrder
from rocket_hf.training.data.robot_from_dataset import read_robot_from_datasets
from rocket_hf.training.recipe import DataConfig, DatasetConfig
from tests.arm import sweeping_joints, write_joint_dataset

from .conftest import journal_records, run_training, set_options

pytestmark = pytest.mark.needs_lerobot
SEVEN = ["j1", "j2", "j3", "j4", "j5", "j6", "gripper"]
SIX = ["j1", "j2", "j3", "j4", "j5", "gripper"]  # without j6
PLACES = [0, 1, 2, 3, 4, 6]  # of the six joints among the seven
QUICK = {
    "run__steps": 3, "run__batch_size": 4, "run__save_every": 2, "run__log_every": 1, "run__validation_samples": 6,
    "data__workers": 0, "data__validation": 0.34, "alignment": None, "parts__heads": "full", "robot__chunk_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """Folders of the datasets by the number of joints: three episodes each, of 6 and of 12 frames."""
    folder = tmp_path_factory.mktemp("datasets")
    six = [sweeping_joints(6, 6, 10, first=5 * episode) for episode in range(3)]
    seven = [sweeping_joints(7, 12, 20, first=5 * episode) for episode in range(3)]
    return {
        6: write_joint_dataset(folder / "six", 10, SIX, six),
        7: write_joint_dataset(folder / "seven", 20, SEVEN, seven),
    }


def data_config(*folders, **changes) -> DataConfig:
    return DataConfig([DatasetConfig(str(folder)) for folder in folders], workers=0, **changes)


def policy_config(family="pi05", **changes):
    return tiny_config(family, **({"alignment": None, "cameras": ["front"], "chunk_size": 4} | changes))


def train(arms, policy, out, **changes):
    words = ["--recipe", "tiny", "--policy", policy, "--out", out]
    datasets = {f"data__datasets__{number}__id": str(folder) for number, folder in enumerate(arms.values())}
    return run_training(*words, *set_options(**datasets, **(QUICK | changes)))


@pytest.fixture(scope="module")
def mixed_run(arms, policies, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "mixed"
    outcome = train(arms, policies("smolvla"), out, data__resample=10)
    assert outcome.code == 0, outcome.stderr
    return SimpleNamespace(out=out, stdout=outcome.stdout)


# Data


@pytest.fixture(scope="module")
def mixture(arms):
    """A batch with frame 1 of each dataset at 10 Hz, and what it was made from."""
    config = policy_config(state_dim=7, action_dim=7, state_names=SEVEN, action_names=SEVEN)
    datasets = [
        RobotDataset(DatasetConfig(str(folder)), config, entry=MixtureEntry(number, 10, True))
        for number, folder in enumerate(arms.values())
    ]
    statistics = compute_dataset_statistics(datasets)
    processor = RocketProcessor.for_config(config, character_tokenizer(), statistics, max_prompt_length=120)
    order = MixtureOrder([FrameRanges([range(1, 2)]) for _ in datasets])
    loader = make_loader(datasets, order, processor, config, data_config(), 0, 64, end_position=64)
    (batch,) = loader
    first = [batch["dataset"].tolist().index(number) for number in (0, 1)]
    return SimpleNamespace(batch=batch, statistics=statistics, processor=processor, config=config, rows=first)


def test_statistics_of_a_dimension_are_over_the_datasets_that_have_it(mixture, arms):
    """At 10 Hz, every second frame of the 7 joints is read; their state is that of `sweeping_joints`."""
    seven = np.concatenate([sweeping_joints(7, 12, 20, first=5 * episode)[0][::2] for episode in range(3)])
    six = np.concatenate([sweeping_joints(6, 6, 10, first=5 * episode)[0] for episode in range(3)])
    expected = [np.concatenate([six[:, index], seven[:, place]]) for index, place in enumerate(PLACES)]
    expected.insert(5, seven[:, 5])  # j6
    state = mixture.statistics["state"]
    np.testing.assert_allclose(state["mean"], [column.mean() for column in expected], rtol=1e-6)
    np.testing.assert_allclose(state["std"], [column.std() for column in expected], rtol=1e-5)
    np.testing.assert_allclose(state["max"], [column.max() for column in expected], rtol=1e-6)
    np.testing.assert_allclose(state["q99"], [np.quantile(column, 0.99) for column in expected], rtol=1e-5)


def test_batch_has_each_dimension_at_the_place_of_its_name_and_zero_where_a_robot_lacks_it(mixture):
    six, seven = mixture.rows
    batch, statistics = mixture.batch, mixture.statistics
    for name, key, row in (("state", "state", 0), ("action", "actions", 1)):
        values = torch.from_numpy(sweeping_joints(6, 6, 10)[row][1:5]).float()  # of frames 1 to 4
        mean, std = (torch.tensor(statistics[name][kind])[PLACES] for kind in ("mean", "std"))
        expected = torch.zeros(4, 7)
        expected[:, PLACES] = (values - mean) / std
        mode = mixture.config.state_normalization if name == "state" else mixture.config.action_normalization
        assert mode == "mean_std"
        torch.testing.assert_close(batch[key][six], expected if key == "actions" else expected[0], atol=1e-5, rtol=1e-5)
        full = torch.from_numpy(sweeping_joints(7, 12, 20)[row][2:10:2]).float()
        mean, std = (torch.tensor(statistics[name][kind]) for kind in ("mean", "std"))
        normalized = (full - mean) / std
        torch.testing.assert_close(
            batch[key][seven], normalized if key == "actions" else normalized[0], atol=1e-5, rtol=1e-5
        )
    assert batch["action_mask"][six].tolist() == [True] * 5 + [False, True]
    assert batch["action_mask"][seven].all()
    assert batch["index"][[six, seven]].tolist() == [1, 2], "lerobot's index of the recorded frame"


def test_prompt_of_pi05_has_the_bin_of_zero_for_lacking_dimensions_and_so_does_the_robot(mixture):
    six, _ = mixture.rows
    tokens = mixture.batch["input_ids"][six]
    prompt = mixture.processor.tokenizer.decode(tokens, skip_special_tokens=True).replace(" ", "")
    text = mixture.processor.prompts(["pick up the cube"], mixture.batch["state"][six][None])[0]
    bins = text.split("State: ")[1].split(";")[0].split()
    assert len(bins) == 7 and bins[5] == "128" and "128" in prompt
    state = np.full(7, 1e6)  # of the lacking joint: must not matter
    state[PLACES] = sweeping_joints(6, 6, 10)[0][1]
    mask = [True] * 5 + [False, True]
    image = np.zeros((24, 32, 3), np.uint8)
    inputs = mixture.processor(images={"front": image}, task="pick up the cube", state=state, state_mask=mask)
    assert torch.equal(inputs["input_ids"][0], tokens)
    torch.testing.assert_close(inputs["state"][0], mixture.batch["state"][six], atol=1e-5, rtol=1e-5)


def test_loss_of_a_flow_excludes_lacking_dimensions():
    velocity, noise = torch.tensor([[[3.0, 9.0]], [[1.0, 2.0]]]), torch.zeros(2, 1, 2)
    mask = torch.tensor([[True, False], [True, True]])
    loss = flow_matching_loss(velocity, noise, torch.zeros(2, 1, 2), None, mask)
    assert loss.item() == pytest.approx((9 + (1 + 4) / 2) / 2), "each sample has the same weight"


@pytest.mark.parametrize("family", ["pi0", "pi05", "smolvla"])
def test_smaller_robot_has_the_loss_and_gradients_that_it_would_have_alone(family):
    """A dimension that is masked equals one that only pads the action to the width of the family."""
    torch.manual_seed(0)
    larger = RocketForActionPrediction(policy_config(family, state_dim=4, action_dim=7)).train()
    smaller = RocketForActionPrediction(policy_config(family, state_dim=4, action_dim=6)).train()
    smaller.load_state_dict(larger.state_dict())
    batch = smaller.config.fake_batch(batch_size=3)
    batch |= {"time": torch.rand(3), "noise": torch.randn(3, 4, larger.config.policy_config.max_action_dim)}
    padded = batch | {"actions": torch.nn.functional.pad(batch["actions"], (0, 1))}
    mask = torch.tensor([[True] * 6 + [False]]).expand(3, -1)
    losses = [smaller(**batch).loss, larger(**padded, action_mask=mask).loss]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    gradients = [{name: weight.grad for name, weight in model.named_parameters()} for model in (smaller, larger)]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert not gradients[1]["policy.action_out.weight"][6].any(), "the lacking dimension has no gradient"


def test_dimensions_with_the_same_names_in_another_order_are_matched(tmp_path, arms):
    states, actions = sweeping_joints(6, 6, 10)
    reverse = write_joint_dataset(tmp_path / "reverse", 10, SIX[::-1], [(states[:, ::-1], actions[:, ::-1])])
    robot = read_robot_from_datasets(data_config(arms[6], reverse), policy_config("openvla-oft"))
    assert robot["action_names"] == robot["state_names"] == SIX
    config = policy_config("openvla-oft", state_dim=6, action_dim=6, state_names=SIX, action_names=SIX)
    data = RobotDataset(DatasetConfig(str(reverse)), config)
    torch.testing.assert_close(data.actions, torch.from_numpy(actions).float())


def test_names_in_the_recipe_replace_those_of_a_dataset(tmp_path, arms):
    other = write_joint_dataset(tmp_path / "other", 20, [f"m{n}" for n in range(6)], [sweeping_joints(6, 6, 20)])
    data = data_config(arms[7], other)
    assert read_robot_from_datasets(data, policy_config())["action_names"] == SEVEN, "unknown names: in order"
    for part in ("state", "action"):
        setattr(data.datasets[1], f"{part}_names", ["j1", "j2", "j3", "j4", "grip", "gripper"])
    names = read_robot_from_datasets(data, policy_config())["action_names"]
    assert names == [*SEVEN, "grip"], "known names at other places: a place is added"
    data.datasets[1].action_names = ["j1"]
    with pytest.raises(UserError, match="has 1 names, but its action has 6 dimensions: give one name for each"):
        read_robot_from_datasets(data, policy_config())


def test_units_that_differ_between_datasets_are_reported(tmp_path, arms):
    states, actions = sweeping_joints(6, 6, 10)
    radians = write_joint_dataset(tmp_path / "radians", 10, SIX, [(np.radians(states), np.radians(actions))])
    config = policy_config("smolvla", state_dim=6, action_dim=6)
    datasets = [RobotDataset(DatasetConfig(str(folder)), config) for folder in (arms[6], radians)]
    found = unit_differences(datasets, {"state": SIX, "action": SIX})
    assert len(found) == 12 and found[0].startswith("state j1 (six ") and ", radians " in found[0]
    assert unit_differences(datasets[:1] * 2, {"state": SIX, "action": None}) == []


# Errors


def test_different_control_rates_stop_with_two_ways_out(arms):
    with pytest.raises(UserError) as caught:
        read_robot_from_datasets(data_config(*arms.values()), policy_config())
    assert str(caught.value) == (
        "the datasets have different control rates, so their action chunks span different times: six 10 Hz, seven 20 "
        "Hz; resample all of them with --set data.resample=10, or mix them as they are with --set data.allow_rates=true"
    )
    assert read_robot_from_datasets(data_config(*arms.values(), resample=20.0), policy_config())["fps"] == 20
    assert "fps" not in read_robot_from_datasets(data_config(*arms.values(), allow_rates=True), policy_config())


@pytest.mark.parametrize("family", ["openvla", "openvla-oft"])
def test_families_that_cannot_pad_stop_at_different_dimensions(arms, family):
    part = "action" if family == "openvla" else "state"  # OpenVLA does not read the state
    with pytest.raises(UserError) as caught:
        read_robot_from_datasets(data_config(*arms.values(), resample=10.0), policy_config(family, chunk_size=1))
    assert str(caught.value) == (
        f"the datasets have different {part} dimensions, which a policy of the family rocket_openvla cannot pad: "
        "six 6; seven 7; train one policy per robot, or start from a policy that pads them (pi0, pi0.5 or SmolVLA)"
    )


def test_names_that_need_more_dimensions_stop_families_that_cannot_pad(tmp_path, arms):
    names = ["gripper", "k1", "k2", "k3", "k4", "k5"]  # the gripper is at another place
    other = write_joint_dataset(tmp_path / "other", 10, names, [sweeping_joints(6, 6, 10)])
    with pytest.raises(UserError) as caught:
        read_robot_from_datasets(data_config(arms[6], other), policy_config("openvla-oft"))
    assert str(caught.value).endswith(
        f"cannot pad: six {', '.join(SIX)}; other {', '.join(names)}; train one policy per robot, name equal "
        "dimensions alike with data.datasets.N.state_names, or start from a policy that pads them (pi0, pi0.5 or "
        "SmolVLA)"
    )


@pytest.mark.parametrize(("changes", "message"), [
    ({"data__resample": 10, "data__allow_rates": True},
     "data.resample gives all datasets one control rate and data.allow_rates keeps several: choose one of them"),
    ({"data__resample": 10, "robot__fps": 20},
     "data.resample=10 and robot.fps=20 are both the policy's control rate: remove robot.fps"),
    ({"data__resample": 0}, "data.resample must be above 0, got 0.0"),
    ({}, "the datasets have different control rates"),
])  # fmt: skip
def test_wrong_settings_of_rates_end_training_with_one_sentence(arms, policies, tmp_path, changes, message):
    outcome = train(arms, policies("smolvla"), tmp_path / "run", **changes)
    assert outcome.code == 2 and message in outcome.stderr and len(outcome.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


# A run


def test_training_prints_rates_dimensions_and_names_of_all_datasets(mixed_run):
    lines = mixed_run.stdout.splitlines()
    start = lines.index(next(line for line in lines if line.startswith("dataset ")))
    assert [line.split() for line in lines[start : start + 3]] == [
        ["dataset", "frames", "fps", "state_dim", "action_dim"],
        ["six", "18", "10", "6", "6"],
        ["seven", "36", "20", "->", "10", "7", "7"],
    ]
    table = [line.split() for line in lines[start + 3 : start + 11]]
    assert table[0] == ["state", "dimension", "six", "seven"]
    assert table[1] == ["0", "j1", "j1"] and table[6] == ["5", "-", "j6"] and table[7] == ["6", "gripper", "gripper"]
    assert lines[start + 11].split() == ["action", "dimension", "six", "seven"]


def test_run_over_robots_with_6_and_7_joints_publishes_one_policy_for_all_dimensions(mixed_run):
    config = json.loads((mixed_run.out / "policy" / "config.json").read_text())
    expected = {"state_dim": 7, "action_dim": 7, "state_names": SEVEN, "action_names": SEVEN, "fps": 10}
    assert {name: config[name] for name in expected} == expected
    assert config["datasets"] == ["six", "seven"]
    processor = RocketProcessor.from_pretrained(mixed_run.out / "policy")
    assert len(processor.statistics["action"]["mean"]) == 7
    steps = [line for line in journal_records(mixed_run.out) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3] and all(np.isfinite(line["loss"]) for line in steps)
    (validation, *_) = [line for line in journal_records(mixed_run.out) if "validation/error" in line]
    assert {f"validation/{joint}" for joint in SEVEN} <= validation.keys()
    assert RocketForActionPrediction.from_pretrained(mixed_run.out / "policy").config.action_dim == 7


def test_run_over_several_robots_resumes(mixed_run, arms, policies):
    outcome = train(arms, policies("smolvla"), mixed_run.out, data__resample=10, run__steps=4)
    assert outcome.code == 2, "the folder has a run, which only --resume continues"
    words = ["--recipe", "tiny", "--policy", policies("smolvla"), "--out", mixed_run.out, "--resume"]
    datasets = {f"data__datasets__{number}__id": str(folder) for number, folder in enumerate(arms.values())}
    changes = QUICK | {"run__steps": 4, "data__resample": 10}
    outcome = run_training(*words, *set_options(**datasets, **changes))
    assert outcome.code == 0, outcome.stderr


def test_policy_of_several_robots_is_evaluated_on_the_joints_of_each_of_them(mixed_run, arms, tmp_path, capsys):
    for number, folder in arms.items():
        out = tmp_path / str(number)
        assert rocket_hf(["eval", str(mixed_run.out), "--dataset", str(folder), "--out", str(out)]) == 0, number
        errors = json.loads((out / "open_loop.json").read_text())["errors"]["policy"]
        assert list(errors) == [*(SEVEN if number == 7 else SIX), "mean"]
    capsys.readouterr()
