"""Malformed self-test files of ROCKET-2: one sentence that names the file and what is wrong with it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rocket_hf.commands import main
from rocket_hf.modeling.self_test import METADATA_KEY, SELF_TEST_FILE

PUBLISHED = Path(__file__).parents[1] / "published_by_0_1_0" / "rocket2"


@pytest.fixture
def policy(tmp_path) -> Path:
    return shutil.copytree(PUBLISHED, tmp_path / "policy")


def change(policy: Path, tensors: dict[str, Any], metadata: Any = None) -> None:
    """Replace tensors by the results of functions, remove those of None, and change the metadata."""
    path = policy / SELF_TEST_FILE
    with safe_open(path, "pt") as file:
        content = json.loads(file.metadata()[METADATA_KEY])
    values = load_file(path)
    for name, replace in tensors.items():
        value = values.pop(name)
        if replace is not None:
            values[name] = replace(value).contiguous()
    content = content | metadata if isinstance(metadata, dict) else content if metadata is None else metadata
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if value is not ...}
    save_file(values, path, metadata={METADATA_KEY: json.dumps(content)})


def test_unchanged_self_test_passes(policy, capsys):
    change(policy, {})
    assert main(["verify", str(policy)]) == 0, capsys.readouterr().err


NAN = float("nan")


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"choices": None}, None, "its responses are not those of each environment and step"),
        ({"images": None}, None, "missing 1 required positional argument: 'images'"),
        ({"seen.scores": None}, None, "it has no scores of actions"),
        ({"choices": lambda value: value[:, :-1]}, None, "its responses are not those of each environment and step"),
        ({"seen.scores": lambda value: value[0]}, None, "its responses are not those of each environment and step"),
        ({"images": lambda value: value[:, :0]}, None, "its goals do not divide its steps"),
        ({"images": lambda value: value.float()}, None, "its images or its goal masks are not images"),
        ({"images": lambda value: value[..., :-1]}, None, "its goals do not fit its images"),
        ({"goal_masks": lambda value: value[:, :0]}, None, "its goals do not divide its steps"),
        ({"goal_interactions": torch.Tensor.flatten}, None, "its goals do not fit its images"),
        ({}, {"tolerances": {"float32": NAN, "bfloat16": 1.0}}, "its tolerances are not finite numbers"),
        ({}, {"tolerances": {"float32": 1.0}}, "it has no tolerances for float32 and bfloat16"),
        ({}, {"most_others": {"float32": NAN, "bfloat16": NAN}}, "its most_others are not finite numbers"),
        ({}, {"most_others": ...}, "missing 1 required positional argument: 'most_others'"),
        ({}, {"effects": {"images": 1.0}}, "it has no effects of images and goals"),
        ({}, {"effects": {"images": "large", "goals": 1.0}}, "its effects are not finite numbers"),
        ({}, {"versions": {"numpy": "2"}}, "its versions are not those of torch and transformers"),
        ({}, {"versions": []}, "its versions are not those of torch and transformers"),
        ({}, {"author": "x"}, "unexpected keyword argument 'author'"),
        ({}, [1], "is not a complete self-test"),
        ({}, 3, "is not a complete self-test"),
    ],
)  # fmt: skip
def test_malformed_self_test_is_one_sentence(policy, tensors, metadata, message, capsys):
    change(policy, tensors, metadata)
    assert main(["verify", str(policy)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and SELF_TEST_FILE in lines[-1] and lines[-1].startswith("rocket-hf verify: ")


@pytest.mark.parametrize("replace", [lambda path: path.write_bytes(path.read_bytes()[:-8]), Path.unlink])
def test_truncated_or_missing_self_test_is_one_sentence(policy, replace: Callable[[Path], Any], capsys):
    replace(policy / SELF_TEST_FILE)
    assert main(["verify", str(policy)]) == 2
    assert SELF_TEST_FILE in capsys.readouterr().err.strip().splitlines()[-1]
