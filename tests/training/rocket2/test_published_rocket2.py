"""A run of ROCKET-2 and its last checkpoint, published: the trained policy to the bit, with the heads that it keeps."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rocket_hf.commands import main

from .conftest import exported, run_training, settings
from .test_goal_training import TINY

pytestmark = pytest.mark.needs_lerobot


def test_a_run_and_its_checkpoint_are_the_same_policy_and_the_card_tells_the_run(rooms, tmp_path, capsys):
    out = tmp_path / "run"
    changes = TINY | {"run__steps": 2, "goals__warmup_steps": 1, "goals__config__rgb_frozen": False}
    outcome = run_training("--recipe", "rocket2", "--dataset", rooms, "--out", out, *settings(**changes))
    assert outcome.code == 0, outcome.stderr
    sources = {"of-run": out, "of-step": out / "checkpoints" / "step-00000002"}
    for name, source in sources.items():
        assert main(["publish", str(source), "--to", str(tmp_path / name), "--license", "mit", "--tag", "v1"]) == 0
        weights = load_file(tmp_path / name / "model.safetensors")
        assert weights.keys() == exported(out).keys()
        assert all(torch.equal(value, exported(out)[key]) for key, value in weights.items())
        assert json.loads((tmp_path / name / "config.json").read_text())["auxiliary_heads"] == ["visibility", "point"]
    assert "heads      visibility, point kept" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "of-step")]) == 0

    card = Path(tmp_path / "of-run" / "README.md").read_text()
    for words in ("Recipe `rocket2`: 2 steps", "| action/walk |", "| auxiliary/visibility |", "| `turn` | 9 | 0 |",
                  " steps per second.\n", "of 60 x 80 pixels", "`goals.warmup_steps`"):  # fmt: skip
        assert words in card, words
    assert "base_model" not in card and str(tmp_path) not in card
