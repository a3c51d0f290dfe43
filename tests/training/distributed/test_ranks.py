"""Several processes train the same weights as one: DDP, FSDP2 and ZeRO over gloo, also with other ranks on resume."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rocket_hf.training.recipe_files import RECIPES_FOLDER

from ...clean_processes import free_port
from ..conftest import (
    checkpoint_tensors,
    exported_weights,
    journal_records,
    largest_difference,
    run_ranks,
    set_options,
    step_records,
)

pytestmark = pytest.mark.needs_lerobot

STEPS = 20
CHANGES = {
    "run__steps": STEPS, "run__save_every": 10, "run__keep": 9, "run__validate_every": 20, "run__ema": 0.9,
    "optimizer__clip_norm": 1.0, "data__augmentation__crop_area": 0.9, "parts__expert": "full",
}  # fmt: skip
FSDP = {"ACCELERATE_USE_FSDP": "true"}
ZERO_2, ZERO_3 = (
    {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage} for stage in ("2", "3")
)
DEEPSPEED_CASES = [
    pytest.param(environment, id=name, marks=pytest.mark.needs_deepspeed)
    for name, environment in [("zero2", ZERO_2), ("zero3", ZERO_3)]
]


@pytest.fixture(scope="module")
def arguments(image_dataset, teacher, policies) -> list:
    return ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher]


@pytest.fixture(scope="module")
def single_process_run(tiny_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "single"
    tiny_run(out, **CHANGES)
    return out


def require_equal_runs(single: Path, out: Path, codes: list[int], step: int = STEPS) -> None:
    """Compare all trained weights, including projector and action head, the exported policy, and the journal."""
    assert set(codes) == {0}, (out.parent / "ranks.txt").read_text()
    weights = checkpoint_tensors(single, step)
    assert any(name.startswith("alignment_head.") for name in weights)
    assert any(name.startswith("policy.action_out.") for name in weights)
    for name in ("model", "average"):
        assert largest_difference(checkpoint_tensors(single, step, name), checkpoint_tensors(out, step, name)) < 1e-5, (
            name
        )
    assert largest_difference(exported_weights(single), exported_weights(out)) < 1e-5
    assert [line["step"] for line in step_records(out)] == list(range(1, STEPS + 1))
    for expected, actual in zip(step_records(single), step_records(out), strict=True):
        losses_and_rates = [key for key in expected if "/" in key and not key.startswith("seconds/")]
        for key in [*losses_and_rates, "loss", "gradient_norm"]:
            assert actual[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-5), key
    errors = [[line for line in journal_records(run) if "validation/error" in line][-1] for run in (single, out)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


@pytest.mark.parametrize("environment", [pytest.param({}, id="ddp"), pytest.param(FSDP, id="fsdp2"), *DEEPSPEED_CASES])
def test_two_ranks_train_the_same_weights_as_one(single_process_run, arguments, tmp_path, environment):
    out = tmp_path / "two"
    codes = run_ranks(2, out, *arguments, *set_options(**CHANGES), **environment)
    require_equal_runs(single_process_run, out, codes)


@pytest.mark.parametrize(
    "environment",
    [pytest.param({}, id="ddp"), pytest.param(FSDP, id="fsdp2", marks=pytest.mark.slow), *DEEPSPEED_CASES],
)
def test_accumulated_passes_of_two_ranks_equal_one_step(single_process_run, arguments, tmp_path, environment):
    """Two ranks with two passes of one sample each process the batch of four that one process uses at once."""
    out = tmp_path / "passes"
    changes = CHANGES | {"run__device_batch_size": 1, "run__steps": STEPS // 2}
    assert run_ranks(2, out, *arguments, *set_options(**changes), **environment) == [0, 0]
    for name in ("model", "average"):
        difference = largest_difference(
            checkpoint_tensors(single_process_run, STEPS // 2, name), checkpoint_tensors(out, STEPS // 2, name)
        )
        assert difference < 1e-5, name
    for expected, actual in zip(step_records(single_process_run), step_records(out), strict=False):
        assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param({}, "alone", id="two-then-one"),
        pytest.param(FSDP, {}, id="fsdp2-then-ddp", marks=pytest.mark.slow),
        pytest.param("alone", FSDP, id="one-then-fsdp2", marks=pytest.mark.slow),
        pytest.param({}, FSDP, id="ddp-then-fsdp2", marks=pytest.mark.slow),
        pytest.param(ZERO_2, ZERO_3, id="zero2-then-zero3", marks=pytest.mark.needs_deepspeed),
        pytest.param(ZERO_3, ZERO_2, id="zero3-then-zero2", marks=pytest.mark.needs_deepspeed),
        pytest.param("alone", ZERO_2, id="one-then-zero2", marks=pytest.mark.needs_deepspeed),
        pytest.param("alone", ZERO_3, id="one-then-zero3", marks=pytest.mark.needs_deepspeed),
        pytest.param(ZERO_2, {}, id="zero2-then-ddp", marks=pytest.mark.needs_deepspeed),
        pytest.param(ZERO_3, "alone", id="zero3-then-one", marks=pytest.mark.needs_deepspeed),
    ],
)
def test_run_resumes_with_another_number_of_ranks(single_process_run, tiny_run, arguments, tmp_path, first, then):
    out = tmp_path / "run"
    for part, (where, more) in enumerate([(first, []), (then, ["--resume"])], start=1):
        changes = CHANGES | {"run__steps": part * STEPS // 2}
        if where == "alone":
            tiny_run(out, *more, **changes)
        else:
            assert run_ranks(2, out, *arguments, *more, *set_options(**changes), **where) == [0, 0], (
                out.parent / "ranks.txt"
            ).read_text()
    require_equal_runs(single_process_run, out, [0])


@pytest.mark.parametrize("environment", [pytest.param({}, id="ddp", marks=pytest.mark.slow), *DEEPSPEED_CASES])
def test_samples_of_skipped_steps_are_recorded_for_all_ranks(arguments, tmp_path, environment):
    """The learning rate makes every loss but the first infinite. Both ranks stop, and each saves its batch."""
    out = tmp_path / "two"
    changes = {"optimizer__lr": 1e30, "run__max_skipped_steps": 2, "run__log_every": 1}
    codes = run_ranks(2, out, *arguments, *set_options(**changes), **environment)
    assert codes == [2, 2]
    assert len(list(out.glob("not-finite-*.safetensors"))) == 2
    recorded = [line["skipped_samples"] for line in journal_records(out) if "skipped_samples" in line]
    assert [len(samples) for samples in recorded] == [4, 4]


def test_all_ranks_report_the_same_error_and_exit(arguments, tmp_path):
    out = tmp_path / "two"
    codes = run_ranks(2, out, *arguments, *set_options(run__batch_size=3))
    assert codes == [2, 2] and not out.exists()
    printed = (tmp_path / "ranks.txt").read_text()
    assert "Traceback" not in printed and "Error" not in printed
    messages = {line for line in printed.splitlines() if line.startswith("train.py:")}
    assert messages == {"train.py: run.batch_size=3 cannot be divided among 2 processes: choose a multiple of 2"}


@pytest.mark.slow
def test_accelerate_launch_trains_the_same_weights(single_process_run, arguments, tmp_path):
    script = RECIPES_FOLDER.parent / "train.py"
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(RECIPES_FOLDER.parent / "accelerate_configs" / "cpu.yaml")]
    command += [
        "--main_process_port",
        str(free_port()),
        str(script),
        *map(str, arguments),
        "--out",
        str(tmp_path / "run"),
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, *set_options(**CHANGES)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    require_equal_runs(single_process_run, tmp_path / "run", [0])


def test_user_error_of_the_main_process_is_printed_once_and_ends_all_ranks(image_dataset, teacher, policies, tmp_path):
    """The folder exists for both ranks, but only the main process reads it: there is no traceback of the other one."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    words = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher]
    assert run_ranks(2, tmp_path / "run", *words) == [2, 2]
    printed = (tmp_path / "ranks.txt").read_text()
    assert printed.count("is not empty: pass --resume") == 1 and "Traceback" not in printed
    assert "2 processes on 1 machine, the first on cpu" in printed
