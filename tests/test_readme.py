"""Tests of README.md: its code runs in order, and its commands print what it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
PYTEST = ".venv/bin/python -m pytest --numprocesses auto --dist loadfile"
MAXIMUM_LINES = 180


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def without_numbers(text: str) -> list[str]:
    return [re.sub(r"[\d.,]*\d", "#", line.rstrip()) for line in text.strip().splitlines()]


def last_make_command(target: str) -> str:
    """Return the last shell command that make would run for a target."""
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1].strip()


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory) -> Path:
    """A folder in which the demo has run with small settings."""
    folder = tmp_path_factory.mktemp("readme")
    assert last_make_command("demo") == ".venv/bin/rocket-hf demo"
    small = ["--episodes", "2", "--steps", "4", "--rollouts", "1"]
    command = [sys.executable, "-m", "rocket_hf.commands", "demo", *small]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def test_readme_has_at_most_180_lines():
    assert len(README.splitlines()) <= MAXIMUM_LINES


def test_readme_has_no_untested_code_block():
    languages = ["console", "console", "python", "console", "python", "python", "text"]
    assert [name for name, _ in BLOCKS] == languages


def test_demo_prints_what_the_readme_shows(demo_folder):
    command, *expected = blocks("console")[0].strip().splitlines()
    assert command == "$ make demo"
    lines = (demo_folder / "stdout.txt").read_text().splitlines()
    printed = [line for line in lines if not line.startswith("$ ")]
    verdict = 1  # index of the line with the better policy, which depends on the length of the training
    for line, expected_line in zip(
        printed[:verdict] + printed[verdict + 1 :], expected[:verdict] + expected[verdict + 1 :], strict=True
    ):
        assert without_numbers(line) == without_numbers(expected_line)
    assert "95 % interval" in printed[verdict] and "95 % interval" in expected[verdict]


def test_make_test_runs_the_suite_that_contains_this_test():
    command, expected = blocks("console")[1].strip().splitlines()
    assert command == "$ make test"
    assert re.fullmatch(r"\d+ passed, \d+ skipped in [\d.]+s \([\d:]+\)", expected)
    assert last_make_command("test") == PYTEST


def test_training_prints_what_the_readme_shows(demo_folder):
    command, *expected = blocks("console")[2].strip().splitlines()
    launch = "$ accelerate launch training/train.py "
    assert command.startswith(launch)
    program = [sys.executable, str(ROOT / "training" / "train.py"), *command.removeprefix(launch).split()]
    done = subprocess.run(program, cwd=demo_folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert without_numbers(done.stdout) == without_numbers("\n".join(expected))


def test_python_blocks_of_the_readme_run_in_order(demo_folder):
    code = "\n".join(blocks("python"))
    environment = os.environ | {"HF_HOME": str(demo_folder / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=demo_folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 10, 4])" in done.stdout
    assert "'alignment/4-24'" in done.stdout
    adapter = demo_folder / "my-adapter" / "adapter_model.safetensors"
    assert adapter.stat().st_size < 200_000
    assert "alignment" not in (demo_folder / "my-policy" / "config.json").read_text()
