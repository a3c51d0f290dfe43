"""DeepSpeed's ZeRO-2 and ZeRO-3: every policy family in shards, bfloat16, `accelerate launch`, and refused settings.

test_ranks.py compares two ranks with one process.

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
from rocket_hf.training.recipe_files import RECIPES_FOLDER

from ...clean_processes import free_port
from ..conftest import (
    checkpoint_tensors,
    exported_weights,
    largest_difference,
    run_ranks,
    run_training,
    set_options,
    step_records,
)

pytestmark = pytest.mark.needs_lerobot

USE_DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}
ZERO_2, ZERO_3 = (USE_DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": stage} for stage in ("2", "3"))


@pytest.fixture
def arguments(image_dataset, teacher):
    return lambda policy: ["--recipe", "tiny", "--policy", policy, "--dataset", image_dataset, "--teacher", teacher]


@pytest.mark.needs_deepspeed
@pytest.mark.parametrize("family", ["pi0", "pi05", "smolvla", "openvla", "openvla-oft"])
def test_sharded_weights_of_every_family_train_like_unsharded_weights(
    arguments, tiny_run, policies, tmp_path, monkeypatch, family
):
    """Also weights that are used outside of their own module. The exported policy loads with AutoModel."""
    monkeypatch.setattr(zero, "PERSISTENCE_THRESHOLD", 0)
    changes = {"run__steps": 2, "run__save_every": 2, "run__validate_every": 1, "run__ema": 0.9}
    changes |= {"run__gradient_checkpointing": True}
    tiny_run(tmp_path / "alone", family=family, **changes)
    out = tmp_path / "two"
    codes = run_ranks(2, out, *arguments(policies(family)), *set_options(**changes), **ZERO_3)
    assert codes == [0, 0], (tmp_path / "ranks.txt").read_text()
    for name in ("model", "average", "optimizer"):
        assert (
            largest_difference(checkpoint_tensors(tmp_path / "alone", 2, name), checkpoint_tensors(out, 2, name)) < 1e-5
        ), name
    assert largest_difference(exported_weights(tmp_path / "alone"), exported_weights(out)) < 1e-5
    loaded = AutoModel.from_pretrained(out / "policy", trust_remote_code=True).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in exported_weights(out).items())


@pytest.mark.needs_deepspeed
def test_bfloat16_computation_keeps_float32_weights(arguments, policies, tmp_path, monkeypatch):
    """ZeRO-2 equals DDP with autocast; ZeRO-3 communicates gradients in bfloat16. Frozen weights do not change."""
    monkeypatch.setattr(zero, "PERSISTENCE_THRESHOLD", 0)
    changes = set_options(run__steps=4, run__save_every=4, run__validate_every=2, parts__expert="full")
    for name, environment in [("ddp", {}), ("zero2", ZERO_2), ("zero3", ZERO_3)]:
        more = environment | {"ACCELERATE_MIXED_PRECISION": "bf16"}
        assert run_ranks(2, tmp_path / name, *arguments(policies("smolvla")), *changes, **more) == [0, 0], (
            tmp_path / "ranks.txt"
        ).read_text()
    trained = {name: checkpoint_tensors(tmp_path / name, 4) for name in ("ddp", "zero2", "zero3")}
    assert all(weight.dtype == torch.float32 for weight in trained["zero3"].values())
    assert largest_difference(trained["ddp"], trained["zero2"]) < 1e-5
    assert largest_difference(trained["ddp"], trained["zero3"]) < 4e-3  # four steps of 1e-3 each
    losses = {name: [line["loss"] for line in step_records(tmp_path / name)] for name in trained}
    assert losses["zero3"] == pytest.approx(losses["ddp"], rel=2e-2)
    before, after = load_file(policies("smolvla") / "model.safetensors"), exported_weights(tmp_path / "zero3")
    assert torch.equal(before["policy.embed_tokens.weight"], after["policy.embed_tokens.weight"])


@pytest.mark.needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_accelerate_launch_trains_with_deepspeed(arguments, policies, tmp_path, stage):
    """The shipped accelerate configurations work on CPUs without mixed precision."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(RECIPES_FOLDER.parent / "accelerate_configs" / f"zero{stage}.yaml")]
    command += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", str(free_port())]
    command += [
        str(RECIPES_FOLDER.parent / "train.py"),
        *map(str, arguments(policies("smolvla"))),
        "--out",
        str(tmp_path / "run"),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command += set_options(run__steps=2, run__save_every=2)
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in step_records(tmp_path / "run")] == [1, 2]
    assert "trained     2 steps of 4 samples" in done.stdout


@pytest.mark.parametrize(
    ("setting", "change", "message"),
    [
        ({"ZERO_STAGE": "1"}, {}, "deepspeed_config: zero_stage must be 2 or 3, got 1"),
        ({"CONFIG_FILE": "mine.json"}, {}, "deepspeed_config_file is not supported: remove it"),
        ({"OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, {}, "deepspeed_config: offload_optimizer_device must be none"),
        ({"OFFLOAD_PARAM_DEVICE": "nvme"}, {}, "deepspeed_config: offload_param_device must be none"),
        ({"ZERO_STAGE": "3"}, {"run__quantize": True}, "run.quantize needs unsharded weights, but ZeRO-3 shards them"),
    ],
)
def test_unsupported_deepspeed_settings_are_refused(
    arguments, policies, tmp_path, monkeypatch, setting, change, message
):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    for name, value in setting.items():
        monkeypatch.setenv(f"ACCELERATE_DEEPSPEED_{name}", value)
    refused(arguments(policies("smolvla")), tmp_path / "run", set_options(**change), message)


def test_missing_deepspeed_is_reported(arguments, policies, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as if it were not installed
    message = "the accelerate configuration selects DeepSpeed, which is not installed: `pip install "
    refused(arguments(policies("smolvla")), tmp_path / "run", [], message)


def refused(arguments: list, out: Path, changes: list[str], message: str) -> None:
    outcome = run_training(*arguments, "--out", out, *changes)
    assert outcome.code == 2 and not out.exists()
    assert len(outcome.stderr.splitlines()) == 1 and outcome.stderr.startswith(f"train.py: {message}"), outcome.stderr
