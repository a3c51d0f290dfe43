"""Several processes train what one trains: DDP and FSDP2 over gloo, also when a run goes on with another number."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rocket_hf.training.recipe_files import FOLDER

from ..clean_processes import free_port
from .conftest import checkpoint, exported, journal, largest_difference, run_ranks, settings, steps_of

pytestmark = [
    pytest.mark.needs_lerobot,
]

STEPS = 20
CHANGES = {
    "run__steps": STEPS, "run__save_every": 10, "run__keep": 9, "run__validate_every": 20, "run__ema": 0.9,
    "optimizer__clip_norm": 1.0, "data__augmentation__crop_area": 0.9, "parts__expert": "full",
}  # fmt: skip
FSDP = {"ACCELERATE_USE_FSDP": "true"}
ZERO_2, ZERO_3 = (
    {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage} for stage in ("2", "3")
)
BY_DEEPSPEED = [
    pytest.param(environment, id=name, marks=pytest.mark.needs_deepspeed)
    for name, environment in [("zero2", ZERO_2), ("zero3", ZERO_3)]
]


@pytest.fixture(scope="module")
def given(stored, teacher, policies) -> list:
    return ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", stored, "--teacher", teacher]


@pytest.fixture(scope="module")
def alone(tiny_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "alone"
    tiny_run(out, **CHANGES)
    return out


def require_equal(alone: Path, out: Path, codes: list[int], step: int = STEPS) -> None:
    """Every trained weight, the projector and the action head too; what is published; and what the journal says."""
    assert set(codes) == {0}, (out.parent / "ranks.txt").read_text()
    weights = checkpoint(alone, step)
    assert any(name.startswith("alignment_head.") for name in weights)
    assert any(name.startswith("policy.action_out.") for name in weights)
    for name in ("model", "average"):
        assert largest_difference(checkpoint(alone, step, name), checkpoint(out, step, name)) < 1e-5, name
    assert largest_difference(exported(alone), exported(out)) < 1e-5
    assert [line["step"] for line in steps_of(out)] == list(range(1, STEPS + 1))
    for mine, theirs in zip(steps_of(alone), steps_of(out), strict=True):
        for key in [key for key in mine if "/" in key and not key.startswith("seconds/")] + ["loss", "gradient_norm"]:
            assert theirs[key] == pytest.approx(mine[key], rel=1e-3, abs=1e-5), key
    errors = [[line for line in journal(run) if "validation/error" in line][-1] for run in (alone, out)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)


@pytest.mark.parametrize("environment", [pytest.param({}, id="ddp"), pytest.param(FSDP, id="fsdp2"), *BY_DEEPSPEED])
def test_two_ranks_train_what_one_trains(alone, given, tmp_path, environment):
    out = tmp_path / "two"
    codes = run_ranks(2, out, *given, *settings(**CHANGES), **environment)
    require_equal(alone, out, codes)


@pytest.mark.parametrize(
    "environment",
    [pytest.param({}, id="ddp"), pytest.param(FSDP, id="fsdp2", marks=pytest.mark.slow), *BY_DEEPSPEED],
)
def test_passes_of_two_ranks_add_up_to_one_step(alone, given, tmp_path, environment):
    """Two ranks, two passes of one sample each: the batch of four that one process takes at once."""
    out = tmp_path / "passes"
    changes = CHANGES | {"run__device_batch_size": 1, "run__steps": STEPS // 2}
    assert run_ranks(2, out, *given, *settings(**changes), **environment) == [0, 0]
    for name in ("model", "average"):
        difference = largest_difference(checkpoint(alone, STEPS // 2, name), checkpoint(out, STEPS // 2, name))
        assert difference < 1e-5, name
    for mine, theirs in zip(steps_of(alone), steps_of(out), strict=False):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-3)


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
def test_a_run_goes_on_with_another_number_of_ranks(alone, tiny_run, given, tmp_path, first, then):
    out = tmp_path / "run"
    for part, (where, more) in enumerate([(first, []), (then, ["--resume"])], start=1):
        changes = CHANGES | {"run__steps": part * STEPS // 2}
        if where == "alone":
            tiny_run(out, *more, **changes)
        else:
            assert run_ranks(2, out, *given, *more, *settings(**changes), **where) == [0, 0], (
                out.parent / "ranks.txt"
            ).read_text()
    require_equal(alone, out, [0])


@pytest.mark.parametrize("environment", [pytest.param({}, id="ddp", marks=pytest.mark.slow), *BY_DEEPSPEED])
def test_the_samples_of_a_skipped_step_are_named_whichever_rank_had_them(given, tmp_path, environment):
    """A learning rate that makes every loss but the first infinite. The run ends on both ranks, each with its batch."""
    out = tmp_path / "two"
    changes = {"optimizer__lr": 1e30, "run__most_skipped": 2, "run__log_every": 1}
    codes = run_ranks(2, out, *given, *settings(**changes), **environment)
    assert codes == [2, 2]
    assert len(list(out.glob("not-finite-*.safetensors"))) == 2
    named = [line["skipped_samples"] for line in journal(out) if "skipped_samples" in line]
    assert [len(samples) for samples in named] == [4, 4]


def test_all_ranks_say_the_same_of_what_is_wrong_and_end(given, tmp_path):
    out = tmp_path / "two"
    codes = run_ranks(2, out, *given, *settings(run__batch_size=3))
    assert codes == [2, 2] and not out.exists()
    said = set((tmp_path / "ranks.txt").read_text().splitlines())
    assert said == {"train.py: run.batch_size=3 cannot be shared by 2 processes: choose a multiple of 2"}


@pytest.mark.slow
def test_accelerate_launches_it(alone, given, tmp_path):
    script = FOLDER.parent / "train.py"
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(FOLDER.parent / "accelerate_configs" / "cpu.yaml")]
    command += ["--main_process_port", str(free_port()), str(script), *map(str, given), "--out", str(tmp_path / "run")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, *settings(**CHANGES)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    require_equal(alone, tmp_path / "run", [0])
