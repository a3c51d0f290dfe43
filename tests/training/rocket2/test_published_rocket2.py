"""Publishing of a ROCKET-2 run and of its last checkpoint: both give the trained policy with its kept heads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rocket_hf.commands import main

from ..conftest import exported_weights, run_training, set_options
from .test_rocket2_training import TINY

pytestmark = pytest.mark.needs_lerobot


def test_run_and_checkpoint_publish_the_same_policy_with_a_card_that_describes_the_run(rooms, tmp_path, capsys):
    out = tmp_path / "run"
    changes = TINY | {"run__steps": 2, "rocket2__warmup_steps": 1, "rocket2__config__rgb_frozen": False}
    outcome = run_training("--recipe", "rocket2", "--dataset", rooms, "--out", out, *set_options(**changes))
    assert outcome.code == 0, outcome.stderr
    sources = {"from-run": out, "from-checkpoint": out / "checkpoints" / "step-00000002"}
    for name, source in sources.items():
        assert main(["publish", str(source), "--to", str(tmp_path / name), "--license", "mit", "--tag", "v1"]) == 0
        weights = load_file(tmp_path / name / "model.safetensors")
        assert weights.keys() == exported_weights(out).keys()
        assert all(torch.equal(value, exported_weights(out)[key]) for key, value in weights.items())
        assert json.loads((tmp_path / name / "config.json").read_text())["auxiliary_heads"] == ["visibility", "point"]
    assert "heads      keeps the auxiliary heads: visibility, point" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "from-checkpoint")]) == 0

    card = Path(tmp_path / "from-run" / "README.md").read_text()
    for text in ("Recipe `rocket2`: 2 steps", "| action/walk |", "| auxiliary/visibility |", "| `turn` | 9 | 0 |",
                  " steps per second.\n", "of 60 x 80 pixels", "`rocket2.warmup_steps`"):  # fmt: skip
        assert text in card, text
    assert "base_model" not in card and str(tmp_path) not in card
