"""The code blocks of docs/own-robot.md run in order, with folders in place of Hub ids and a small policy."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rocket_hf.study.small_policy import write_small_policy

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "own-robot.md").read_text(encoding="utf-8")
FOLDERS = {
    "you/robot-data": "robot-data",
    "you/new-robot": "robot-data",
    "you/base": "base",
    "you/my-robot": "published",
}
FEW_STEPS = [
    word
    for change in (
        "run.steps=4", "run.batch_size=4", "run.save_every=2", "run.validate_every=2", "run.log_every=1",
        "run.validation_samples=4", "data.validation=0.34", "data.workers=0",
    )
    for word in ("--set", change)
]  # fmt: skip
FEW_LAYERS = ["--set", "alignment.pairs=3"]  # The small policy and its teacher have four layers.
LICENSE = ["--license", "apache-2.0", "--base", "you/base"]
# Options for the first words of a command, to make it small, or None for a command that this machine cannot run.
OPTIONS: dict[str, list[str] | None] = {
    "rocket-hf convert lerobot-pi0": None,  # the base policies are replaced by a small one
    "rocket-hf convert lerobot-smolvla": None,
    "rocket-hf convert openvla-oft": None,
    "rocket-hf layers base": ["--pairs", "2", "--samples", "8"],
    "rocket-hf cache build": ["--device", "cpu", "--workers", "0", "--layers", "1,2,3,4"],
    "rocket-hf train --config_file": None,  # four GPUs
    "rocket-hf train --recipe": [*FEW_STEPS, *FEW_LAYERS],
    "rocket-hf adapt": FEW_STEPS,
    "rocket-hf publish runs/new-robot": None,  # an adapter's base is on the Hub; tests/training/test_published_run.py
    "rocket-hf publish runs/my-robot": LICENSE,
}


def blocks() -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def with_folders(text: str) -> str:
    for name, folder in FOLDERS.items():
        text = re.sub(rf"{name}\b(?!-)", folder, text)
    return text.replace("facebook/VGGT-1B", "embedded")


def small_command(line: str) -> list[str] | None:
    """Return the words of a command with small numbers and local folders; None if it is not run."""
    more = next((options for start, options in OPTIONS.items() if line.startswith(start)), [])
    if more is None:
        return None
    line = with_folders(line).replace("--repo published --tag v1", "--to published")
    line = line.replace("--repo you/new-robot-adapter", "--to adapter").replace(" --revision v1", "")
    return [*shlex.split(line), *more]


def run(folder: Path, words: list[str]) -> str:
    """Run a command in `folder`, without network."""
    words = [word for word in words if not word.startswith("PYTHONPATH=")]
    words[0] = str(Path(sys.executable).with_name(words[0])) if words[0] != sys.executable else words[0]
    environment = os.environ | {
        "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "2",
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def run_shell_block(folder: Path, block: str) -> list[str]:
    outputs = []
    for line in block.replace("\\\n", " ").splitlines():
        words = small_command(line.removeprefix("$ ").partition("  #")[0].strip()) if line.strip() else None
        if words:
            outputs.append(run(folder, words))
    return outputs


@pytest.mark.slow
@pytest.mark.needs_lerobot
def test_code_of_the_guide_runs_in_order_from_recording_to_rollout(tmp_path):
    outputs = []
    for language, block in blocks():
        if language == "python" and block.startswith("# arm/__init__.py"):
            (tmp_path / "arm").mkdir()
            (tmp_path / "arm" / "__init__.py").write_text(block)
        elif language == "python":
            outputs.append(run(tmp_path, [sys.executable, "-c", with_folders(block)]))
        elif language == "yaml":
            (tmp_path / "my-robot.yaml").write_text(with_folders(block))
        elif language == "console":
            outputs += run_shell_block(tmp_path, next(line for line in block.splitlines() if line.startswith("$ ")))
        elif language == "sh":
            outputs += run_shell_block(tmp_path, block)
        if (tmp_path / "robot-data").exists() and not (tmp_path / "base").exists():
            write_small_policy(tmp_path / "base", tmp_path / "robot-data")
    text = "\n".join(outputs)
    assert "| joint | policy | hold still | mean action | nearest neighbor |" in text
    assert "| shoulder_pan.pos |" in text
    assert "Rollout finished" in text
    config = json.loads((tmp_path / "published" / "config.json").read_text())
    assert config["action_names"][0] == "shoulder_pan.pos" and config["fps"] == 30
    assert config["example_task"] == "pick up the cube" and config["datasets"] == ["robot-data"]
    card = (tmp_path / "published" / "README.md").read_text()
    assert 'task="pick up the cube"' in card and "| control rate | 30 Hz |" in card and "shoulder_pan.pos" in card
