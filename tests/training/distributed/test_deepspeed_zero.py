"""What is DeepSpeed's own: every family's weights in ZeRO-3's shards, steps that are left out, `accelerate launch`; and
what a configuration may not ask for. That two ranks train what one trains is in test_ranks.py.

    make test-deepspeed
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from rocket_hf.training.distributed import deepspeed_zero as zero
from rocket_hf.training.recipe_files import FOLDER

from ..clean_processes import free_port
from .conftest import checkpoint, exported, largest_difference, run_ranks, run_training, settings, steps_of

pytestmark = pytest.mark.needs_lerobot

ASKED = {"ACCELERATE_USE_DEEPSPEED": "true"}
ZERO_2, ZERO_3 = (ASKED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": stage} for stage in ("2", "3"))


@pytest.fixture
def given(stored, teacher):
    return lambda policy: ["--recipe", "tiny", "--policy", policy, "--dataset", stored, "--teacher", teacher]


@pytest.mark.needs_deepspeed
@pytest.mark.parametrize("family", ["pi0", "pi05", "smolvla", "openvla", "openvla-oft"])
def test_every_familys_weights_train_in_shards(given, tiny_run, policies, tmp_path, monkeypatch, family):
    """Also where a weight is used outside of the module that owns it, and what is published loads anywhere."""
    monkeypatch.setattr(zero, "KEPT_WHOLE", 0)
    changes = {"run__steps": 2, "run__save_every": 2, "run__validate_every": 1, "run__ema": 0.9}
    changes |= {"run__gradient_checkpointing": True}
    tiny_run(tmp_path / "alone", family=family, **changes)
    out = tmp_path / "two"
    codes = run_ranks(2, out, *given(policies(family)), *settings(**changes), **ZERO_3)
    assert codes == [0, 0], (tmp_path / "ranks.txt").read_text()
    for name in ("model", "average", "optimizer"):
        assert largest_difference(checkpoint(tmp_path / "alone", 2, name), checkpoint(out, 2, name)) < 1e-5, name
    assert largest_difference(exported(tmp_path / "alone"), exported(out)) < 1e-5
    loaded = AutoModel.from_pretrained(out / "policy", trust_remote_code=True).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in exported(out).items())


@pytest.mark.needs_deepspeed
def test_bfloat16_computes_and_leaves_the_weights_float32(given, policies, tmp_path, monkeypatch):
    """As DDP's autocast does. ZeRO-3's gradients travel in bfloat16; what is frozen comes out as it went in."""
    monkeypatch.setattr(zero, "KEPT_WHOLE", 0)
    changes = settings(run__steps=4, run__save_every=4, run__validate_every=2, parts__expert="full")
    for name, environment in [("ddp", {}), ("zero2", ZERO_2), ("zero3", ZERO_3)]:
        more = environment | {"ACCELERATE_MIXED_PRECISION": "bf16"}
        assert run_ranks(2, tmp_path / name, *given(policies("smolvla")), *changes, **more) == [0, 0], (
            tmp_path / "ranks.txt"
        ).read_text()
    trained = {name: checkpoint(tmp_path / name, 4) for name in ("ddp", "zero2", "zero3")}
    assert all(weight.dtype == torch.float32 for weight in trained["zero3"].values())
    assert largest_difference(trained["ddp"], trained["zero2"]) < 1e-5
    assert largest_difference(trained["ddp"], trained["zero3"]) < 4e-3  # four steps of 1e-3 each
    losses = {name: [line["loss"] for line in steps_of(tmp_path / name)] for name in trained}
    assert losses["zero3"] == pytest.approx(losses["ddp"], rel=2e-2)
    before, after = load_file(policies("smolvla") / "model.safetensors"), exported(tmp_path / "zero3")
    assert torch.equal(before["policy.embed_tokens.weight"], after["policy.embed_tokens.weight"])


@pytest.mark.needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_accelerate_launches_it(given, policies, tmp_path, stage):
    """With the configurations as they are, but for what GPUs would be for."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(FOLDER.parent / "accelerate_configs" / f"zero{stage}.yaml")]
    command += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", str(free_port())]
    command += [str(FOLDER.parent / "train.py"), *map(str, given(policies("smolvla"))), "--out", str(tmp_path / "run")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command += settings(run__steps=2, run__save_every=2)
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in steps_of(tmp_path / "run")] == [1, 2]
    assert "trained     2 steps of 4 samples" in done.stdout


@pytest.mark.parametrize(
    ("setting", "change", "sentence"),
    [
        ({"ZERO_STAGE": "1"}, {}, "deepspeed_config: zero_stage is 2 or 3, not 1"),
        ({"CONFIG_FILE": "mine.json"}, {}, "leave deepspeed_config_file out of the configuration"),
        ({"OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, {}, "deepspeed_config: offload_optimizer_device is none here"),
        ({"OFFLOAD_PARAM_DEVICE": "nvme"}, {}, "deepspeed_config: offload_param_device is none here"),
        ({"ZERO_STAGE": "3"}, {"run__quantize": True}, "run.quantize needs whole weights, which ZeRO-3 does not leave"),
    ],
)
def test_what_a_configuration_may_not_ask_for(given, policies, tmp_path, monkeypatch, setting, change, sentence):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for name, value in setting.items():
        monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", value)
    refused(given(policies("smolvla")), tmp_path / "run", settings(**change), sentence)


def test_without_deepspeed_it_says_so(given, policies, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as if it were not installed
    sentence = "the configuration asks for DeepSpeed, which is not installed: `pip install "
    refused(given(policies("smolvla")), tmp_path / "run", [], sentence)


def refused(given: list, out: Path, changes: list[str], sentence: str) -> None:
    outcome = run_training(*given, "--out", out, *changes)
    assert outcome.code == 2 and not out.exists()
    assert len(outcome.stderr.splitlines()) == 1 and outcome.stderr.startswith(f"train.py: {sentence}"), outcome.stderr
