"""A run that stops and goes on is the run that never stopped."""

import shutil
from pathlib import Path

import pytest

from .conftest import checkpoint, exported, journal, largest_difference, run_training, settings, steps_of

pytestmark = pytest.mark.needs_lerobot

FULL = {f"parts__{part}": "full" for part in ("vision", "language", "expert", "heads")}
ALL_THAT_IS_RANDOM = {
    "data__augmentation__crop_area": 0.8, "data__augmentation__hue": 0.1, "lora__dropout": 0.1, "run__ema": 0.9,
    "run__validate_every": 2, "run__save_every": 1, "run__keep": 9, "run__batch_size": 3,
}  # fmt: skip
MEASURED = ("seconds/", "samples_per_second", "memory_mib")


def lines(out: Path) -> list[dict]:
    """The journal without what a clock says."""
    return [{key: value for key, value in line.items() if not key.startswith(MEASURED)} for line in journal(out)]


def require_same(one: Path, other: Path, last: int) -> None:
    for name in ("model", "optimizer", "average", "random"):
        assert largest_difference(checkpoint(one, last, name), checkpoint(other, last, name)) == 0, name
    assert largest_difference(exported(one), exported(other)) == 0
    measured = [line for line in lines(one) if set(line) - {"step"}]
    assert measured == [line for line in lines(other) if set(line) - {"step"}]


@pytest.fixture(scope="module")
def four(tiny_run, tmp_path_factory) -> Path:
    """A run that never stopped."""
    out = tmp_path_factory.mktemp("runs") / "four"
    tiny_run(out, run__steps=4, **ALL_THAT_IS_RANDOM)
    return out


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param({}, id="lora"),
        pytest.param(FULL, id="full"),
        pytest.param({"data__workers": 2}, id="lora-2-workers", marks=pytest.mark.slow),
        pytest.param(FULL | {"data__workers": 2}, id="full-2-workers", marks=pytest.mark.slow),
    ],
)
def test_two_steps_and_two_more_are_four_bit_for_bit(tiny_run, four, tmp_path, kind):
    changes = ALL_THAT_IS_RANDOM | kind
    if kind:
        four = tmp_path / "four"
        tiny_run(four, run__steps=4, **changes)
    tiny_run(tmp_path / "two", run__steps=2, **changes)
    shutil.rmtree(tmp_path / "two" / "policy")
    tiny_run(tmp_path / "two", "--resume", run__steps=4, **changes)
    require_same(four, tmp_path / "two", last=4)
    assert [line["step"] for line in steps_of(tmp_path / "two")] == [1, 2, 3, 4]


def test_after_a_kill_it_goes_on_from_the_last_checkpoint(tiny_run, four, tmp_path):
    """What is left of a run that was killed after its third step: lines of steps that no checkpoint has, one of them
    torn, and a checkpoint that was being written."""
    shutil.copytree(four, tmp_path / "killed")
    killed = tmp_path / "killed"
    shutil.rmtree(killed / "policy")
    for step in (3, 4):
        shutil.rmtree(killed / "checkpoints" / f"step-{step:08d}")
    (killed / "checkpoints" / ".partial-step-00000003").mkdir()
    text = (killed / "journal.jsonl").read_text()
    (killed / "journal.jsonl").write_text(text[: text.index('{"step": 4') + 30])
    tiny_run(killed, "--resume", run__steps=4, **ALL_THAT_IS_RANDOM)
    require_same(four, killed, last=4)


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(tiny_run, stored, policies, teacher, tmp_path, limit_files):
    out = tmp_path / "run"
    tiny_run(out, run__steps=1)
    given = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", stored, "--teacher", teacher]
    given += ["--out", out, "--resume", *settings(run__steps=2)]
    limit_files(20_000)
    outcome = run_training(*given)
    limit_files(-1)
    assert outcome.code == 2 and len(outcome.stderr.splitlines()) == 1
    assert "the checkpoint of step 2 could not be written" in outcome.stderr
    assert "the checkpoint of step 1 is whole" in outcome.stderr
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000001"]
    assert run_training(*given).code == 0
    tiny_run(tmp_path / "whole", run__steps=2)
    assert largest_difference(exported(tmp_path / "whole"), exported(out)) == 0


def test_a_run_that_never_saved_begins_again(tiny_run, tmp_path):
    tiny_run(tmp_path / "whole", run__steps=2, run__keep=9)
    shutil.copytree(tmp_path / "whole", tmp_path / "begun")
    for folder in ("policy", "checkpoints"):
        shutil.rmtree(tmp_path / "begun" / folder)
    tiny_run(tmp_path / "begun", "--resume", run__steps=2, run__keep=9)
    assert largest_difference(exported(tmp_path / "whole"), exported(tmp_path / "begun")) == 0
    assert [line["step"] for line in steps_of(tmp_path / "begun")] == [1, 2]


def test_a_run_that_is_done_writes_its_policy_again_and_keeps_the_former(tiny_run, tmp_path):
    tiny_run(tmp_path, run__steps=1)
    former = exported(tmp_path)
    tiny_run(tmp_path, "--resume", run__steps=1)
    assert largest_difference(former, exported(tmp_path)) == 0
    assert (tmp_path / "policy-earlier-1").is_dir()


def test_what_may_change_changes_and_all_else_is_refused_by_name(tiny_run, stored, policies, teacher, tmp_path):
    tiny_run(tmp_path, run__steps=1)
    given = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", stored, "--out", tmp_path, "--resume"]
    for changes, named in [
        ({"optimizer__lr": 0.5, "run__steps": 3}, "optimizer.lr differ from the run"),
        ({"run__seed": 1, "lora__rank": 4}, "lora.rank, run.seed differ from the run"),
        ({"run__batch_size": 8}, "run.batch_size differ"),
    ]:
        outcome = run_training(*given, "--teacher", teacher, *settings(**({"run__steps": 1} | changes)))
        assert outcome.code == 2 and named in outcome.stderr and len(outcome.stderr.splitlines()) == 1
    outcome = run_training(*given, "--teacher", "elsewhere", *settings(run__steps=1))
    assert outcome.code == 2 and "teacher.name differ from the run" in outcome.stderr
    tiny_run(tmp_path, "--resume", run__steps=3, run__log_every=1, run__save_every=1, run__device_batch_size=2)
    assert [line["step"] for line in steps_of(tmp_path)] == [1, 2, 3]
