"""Damaged JSON files of policies and datasets end `rocket-hf eval` with one sentence that names the file."""

import json
import shutil

import pytest

from rocket_hf.commands import main
from rocket_hf.study.small_policy import write_small_policy
from tests.arm import write_arm_dataset


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Folders of a small policy and of a dataset of the same robot."""
    folder = tmp_path_factory.mktemp("sources")
    dataset = write_arm_dataset(folder / "arm", episodes=2, frames=6, size=(16, 24))
    write_small_policy(folder / "policy", dataset)
    return folder


def evaluate(capsys, policy, dataset):
    code = main(["eval", str(policy), "--dataset", str(dataset), "--episodes", "1"])
    error = capsys.readouterr().err.strip().splitlines()
    return code, error[-1] if error else ""


def changed_json(path, change):
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | change))


OBJECTS = ("config.json", "processor_config.json", "tokenizer.json")
POLICY_TEXTS = [(name, text) for name in OBJECTS for text in ("[]", "null", "3", '{"a": 1}')]
POLICY_TEXTS += [("tokenizer_config.json", text) for text in ("[]", "3", "{}")]


@pytest.mark.parametrize(("name", "text"), POLICY_TEXTS)
def test_json_file_of_a_policy_without_its_content_is_named(name, text, sources, tmp_path, capsys):
    policy = shutil.copytree(sources / "policy", tmp_path / "policy")
    (policy / name).write_text(text)
    code, error = evaluate(capsys, policy, sources / "arm")
    assert code == 2 and error.startswith("rocket-hf eval: "), error
    assert name in error or "policy" in error


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", {"dtype": []}, "dtype must be the name of a torch dtype"),
        ("config.json", {"dtype": "float99"}, "dtype must be the name of a torch dtype"),
        ("config.json", {"model_type": []}, "has no model_type"),
        ("processor_config.json", {"cameras": None}, "cameras must be a list of names"),
        ("processor_config.json", {"cameras": "front"}, "cameras must be a list of names"),
        ("processor_config.json", {"prompt_template": 3}, "prompt_template must be a text"),
        ("processor_config.json", {"resize": []}, "resize must be a text"),
        ("processor_config.json", {"state_normalization": {}}, "state_normalization must be a text"),
        ("processor_config.json", {"statistics": "x"}, "statistics must be tables of lists"),
        ("processor_config.json", {"statistics": {"state": {"mean": 3}}}, "statistics must be tables of lists"),
    ],
)
def test_invalid_setting_of_a_policy_is_named(name, change, message, sources, tmp_path, capsys):
    policy = shutil.copytree(sources / "policy", tmp_path / "policy")
    changed_json(policy / name, change)
    code, error = evaluate(capsys, policy, sources / "arm")
    assert code == 2 and message in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": None}, "features must be a table of columns"),
        ({"features": []}, "features must be a table of columns"),
        ({"features": {"action": {"dtype": "float32"}}}, "the column 'action' needs a dtype and a shape"),
        ({"features": {"action": []}}, "the column 'action' needs a dtype and a shape"),
        ({"fps": 0}, "fps must be a number above 0"),
        ({"fps": "30"}, "fps must be a number above 0"),
        ({"total_episodes": -1}, "total_episodes must be an integer above 0"),
        ({"total_tasks": -1}, "total_tasks must be an integer above 0"),
    ],
)
def test_invalid_metadata_of_a_dataset_is_named(change, message, sources, tmp_path, capsys):
    dataset = shutil.copytree(sources / "arm", tmp_path / "arm")
    changed_json(dataset / "meta" / "info.json", change)
    code, error = evaluate(capsys, sources / "policy", dataset)
    assert code == 2 and message in error and "meta/info.json" in error


@pytest.mark.parametrize("text", ["[]", "{}", "null", "3"])
def test_metadata_that_is_no_table_is_named(text, sources, tmp_path, capsys):
    dataset = shutil.copytree(sources / "arm", tmp_path / "arm")
    (dataset / "meta" / "info.json").write_text(text)
    code, error = evaluate(capsys, sources / "policy", dataset)
    assert code == 2 and str(dataset) in error


@pytest.mark.parametrize("place", ["policy", "dataset"])
def test_home_folder_of_an_unknown_user_is_named(place, sources, capsys):
    paths = {"policy": sources / "policy", "dataset": sources / "arm", place: "~nobody-of-this-name/x"}
    code, error = evaluate(capsys, paths["policy"], paths["dataset"])
    assert code == 2 and "there is no such user" in error


@pytest.mark.parametrize("device", ["cuda:99", "meta", "mps", "gpu", ""])
@pytest.mark.parametrize("command", ["eval", "cache"])
def test_device_that_this_machine_lacks_is_named(command, device, sources, tmp_path, capsys):
    words = {
        "eval": ["eval", str(sources / "policy"), "--dataset", str(sources / "arm")],
        "cache": ["cache", "build", str(sources / "arm"), "--teacher", "embedded"],
    }[command]
    assert main([*words, "--device", device, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"--device {device!r} is not available (" in error and len(error) < 400 and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
