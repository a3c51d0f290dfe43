"""The README does what it says: its code runs, its commands print what it shows, its tree names every file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


FEW_STEPS = " ".join(
    f"--set {change}"
    for change in ("run.steps=4", "goals.warmup_steps=2", "run.save_every=2", "run.validate_every=2", "run.log_every=1",
                   "run.validation_samples=4", "data.validation=0.34")
)  # fmt: skip
TESTS = ".venv/bin/python -m pytest --numprocesses auto --dist loadfile"


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def without_numbers(text: str) -> list[str]:
    return [re.sub(r"[\d.,]*\d", "#", line.rstrip()) for line in text.strip().splitlines()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """An empty folder in which the demo has run, as `make demo` runs it but for less long."""
    folder = tmp_path_factory.mktemp("readme")
    recipe = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert recipe.strip().splitlines()[-1].strip() == ".venv/bin/rocket-hf demo"
    small = ["--episodes", "2", "--steps", "4", "--rollouts", "1"]
    command = [sys.executable, "-m", "rocket_hf.commands", "demo", *small]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    (folder / "printed").write_text(done.stdout)
    return folder


def test_the_demo_prints_what_the_readme_shows(workplace):
    command, *shown = blocks("console")[0].strip().splitlines()
    assert command == "$ make demo"
    printed = (workplace / "printed").read_text().splitlines()
    told = [line for line in printed if not line.startswith("$ ")]
    verdict = 1  # which of the two policies is better depends on how long they were trained
    for line, wanted in zip(told[:verdict] + told[verdict + 1 :], shown[:verdict] + shown[verdict + 1 :], strict=True):
        assert without_numbers(line) == without_numbers(wanted)
    assert "95 % interval" in told[verdict] and "95 % interval" in shown[verdict]


def test_make_test_is_the_suite_that_runs_this():
    command, shown = blocks("console")[1].strip().splitlines()
    assert command == "$ make test"
    assert re.fullmatch(r"\d+ passed, \d+ skipped in [\d.]+s \([\d:]+\)", shown)
    recipe = subprocess.run(["make", "--dry-run", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert recipe.strip().splitlines()[-1].strip() == TESTS


def test_training_prints_what_the_readme_shows(workplace):
    command, *shown = blocks("console")[2].strip().splitlines()
    launch = "$ accelerate launch training/train.py "
    assert command.startswith(launch)
    program = [sys.executable, str(ROOT / "training" / "train.py"), *command.removeprefix(launch).split()]
    done = subprocess.run(program, cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert without_numbers(done.stdout) == without_numbers("\n".join(shown))


def test_the_code_runs_in_order(workplace):
    code = "\n".join(blocks("python"))
    environment = os.environ | {"HF_HOME": str(workplace / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=workplace, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 10, 4])" in done.stdout
    assert "'alignment/4-24'" in done.stdout
    adapter = workplace / "my-adapter" / "adapter_model.safetensors"
    assert adapter.stat().st_size < 200_000
    assert "alignment" not in (workplace / "my-policy" / "config.json").read_text()


def test_every_code_block_is_one_of_those():
    languages = ["console", "console", "python", "console", "python", "python", "sh", "text"]
    assert [name for name, _ in BLOCKS] == languages


@pytest.mark.slow
def test_the_commands_of_rocket2_go_one_after_the_other(tmp_path):
    """As they stand, but for less long."""
    smaller = {
        "simulate": ("--rooms 300", "--rooms 3 --views 6 --workers 1"),
        "pretrain-encoder": ("--out eyes", "--out eyes --steps 10"),
        "launch": ("--dataset rooms", f"--dataset rooms --out runs/rocket2 {FEW_STEPS}"),
        "eval": ("--episodes 200", "--episodes 2 --refresh 30 --max-steps 4 --workers 0"),
        "publish": ("--repo you/name", "--to published"),
    }
    programs = {"rocket-hf": ["-m", "rocket_hf.commands"], "accelerate": [str(ROOT / "training" / "train.py")]}
    lines = [line.partition("#")[0].strip() for line in blocks("sh")[0].strip().splitlines()]
    assert [line.split()[1] for line in lines] == list(smaller)
    for line in lines:
        long, short = smaller[line.split()[1]]
        assert long in line
        program, *words = line.replace(long, short).replace("launch training/train.py ", "").split()
        done = subprocess.run(
            [sys.executable, *programs[program], *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "published" / "self_test.safetensors").is_file()


def test_the_tree_names_every_file():
    tree = blocks("text")[0]
    rooms = ("modeling", "rocket_hf", "training", "hub_cards", "lerobot_policy_rocket")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py") if not path.stem.startswith("__")]
    named = set(re.findall(r"([\w/]+\.py)\b", tree))
    known = {Path(name).name for name in named}
    for path in files:
        assert path.name in known, f"the README's tree lacks {path.relative_to(ROOT)}"
    for name in named:
        assert any(f"/{path.relative_to(ROOT)}".endswith(f"/{name}") for path in files), (
            f"the README's tree names {name}"
        )
