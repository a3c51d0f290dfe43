"""`rocket-hf train`: launcher flags and training arguments, accelerate configurations, exit codes, and a real run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rocket_hf.commands import main as rocket_hf
from rocket_hf.errors import UserError
from rocket_hf.training.arguments import training_words
from rocket_hf.training.launch import CONFIGS_FOLDER, exit_code, resolve_config_name, split_launcher_flags
from rocket_hf.training.train import parse_arguments

from ..clean_processes import free_port
from .conftest import set_options, step_records


@pytest.mark.parametrize(
    ("words", "flags", "others"),
    [
        ("--num_processes 4 --recipe rocket", "--num_processes 4", "--recipe rocket"),
        ("--recipe rocket --num-processes=4 --resume", "--num-processes=4", "--recipe rocket --resume"),
        ("--config_file fsdp2 --set run.steps=3 --mixed_precision bf16", "--config_file fsdp2 --mixed_precision bf16",
         "--set run.steps=3"),
        ("--cpu --dataset a --dataset b", "--cpu", "--dataset a --dataset b"),
        ("--module other --no_python --recipee tiny", "", "--module other --no_python --recipee tiny"),
        ("", "", ""),
    ],
)  # fmt: skip
def test_launcher_flags_are_split_from_training_arguments(words, flags, others):
    assert split_launcher_flags(words.split()) == (flags.split(), others.split())


def test_names_of_shipped_accelerate_configurations_are_resolved(tmp_path):
    path = str(CONFIGS_FOLDER / "fsdp2.yaml")
    assert resolve_config_name(["--config_file", "fsdp2", "--cpu"]) == ["--config_file", path, "--cpu"]
    assert resolve_config_name(["--config-file=fsdp2"]) == [f"--config-file={path}"]
    assert resolve_config_name(["--config_file", path]) == ["--config_file", path]
    with pytest.raises(UserError, match="--config_file fsdp: there is no such file; give a path, or one of cpu, ddp"):
        resolve_config_name(["--config_file", "fsdp"])


def test_training_arguments_are_forwarded_unchanged():
    words = ["--recipe", "tiny", "--policy=a@v1", "--teacher=t", "--out=o", "--dataset=x", "--dataset=y", "--cache=c",
             "--set=run.steps=3", "--set=run.seed=-1", "--dry-run", "--resume"]  # fmt: skip
    assert training_words(parse_arguments(words)) == words
    assert training_words(parse_arguments([])) == ["--recipe", "rocket"]


@pytest.mark.parametrize(("codes", "expected"), [([2], 2), ([130], 130), ([-15, 2], 2), ([-9], 137), ([1, 2], 2)])
def test_exit_codes_of_training_processes_are_passed_on(codes, expected):
    assert exit_code(codes) == expected


def test_unknown_argument_is_refused(capsys):
    assert rocket_hf(["train", "--recipee", "tiny"]) == 2
    assert "rocket-hf train: unrecognized arguments: --recipee tiny; see `rocket-hf train --help`" in (
        capsys.readouterr().err
    )


def test_help_lists_training_arguments_and_launcher_flags(capsys):
    with pytest.raises(SystemExit) as raised:
        rocket_hf(["train", "--help"])
    output = capsys.readouterr().out
    assert raised.value.code == 0
    for flag in ("--recipe", "--set", "--resume", "--num_processes", "--config_file", "--mixed_precision"):
        assert flag in output, flag


def train_in_process(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run `rocket-hf train` in a process whose working directory is not a checkout."""
    command = [sys.executable, "-m", "rocket_hf.commands", "train", *map(str, words)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.mark.needs_lerobot
def test_user_error_of_the_training_process_is_one_line_with_exit_code_2(tmp_path):
    done = train_in_process(tmp_path, "--recipe", "tinny")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "train.py: there is no recipe 'tinny': did you mean 'tiny'?; or give the path of a YAML file"
    ]


@pytest.mark.needs_lerobot
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param([], id="one-process"),
        pytest.param(["--config_file", "cpu", "--main_process_port", "PORT"], id="two", marks=pytest.mark.slow),
    ],
)
def test_train_command_trains_outside_of_a_checkout(image_dataset, teacher, policies, tmp_path, flags):
    flags = [str(free_port()) if flag == "PORT" else flag for flag in flags]
    arguments = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher]
    done = train_in_process(tmp_path, *arguments, *flags, "--out", "run", *set_options(run__steps=2, run__log_every=1))
    assert done.returncode == 0, done.stderr
    assert [record["step"] for record in step_records(tmp_path / "run")] == [1, 2]
    assert "trained     2 steps of 4 samples" in done.stdout
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()
