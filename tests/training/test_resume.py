"""A run that is interrupted and resumed equals an uninterrupted run."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import (
    checkpoint_tensors,
    exported_weights,
    journal_records,
    largest_difference,
    run_training,
    set_options,
    step_records,
)

pytestmark = pytest.mark.needs_lerobot

FULL = {f"parts__{part}": "full" for part in ("vision", "language", "expert", "heads")}
RANDOM_SETTINGS = {
    "data__augmentation__crop_area": 0.8, "data__augmentation__hue": 0.1, "lora__dropout": 0.1, "run__ema": 0.9,
    "run__validate_every": 2, "run__save_every": 1, "run__keep": 9, "run__batch_size": 3,
}  # fmt: skip
TIMING_KEYS = ("seconds/", "samples_per_second", "memory_mib")


def untimed_records(out: Path) -> list[dict]:
    """Return the journal without timings and memory, which differ between equal runs."""
    return [
        {key: value for key, value in line.items() if not key.startswith(TIMING_KEYS)} for line in journal_records(out)
    ]


def require_equal_runs(one: Path, other: Path, last: int) -> None:
    for name in ("model", "optimizer", "average", "random"):
        assert largest_difference(checkpoint_tensors(one, last, name), checkpoint_tensors(other, last, name)) == 0, name
    assert largest_difference(exported_weights(one), exported_weights(other)) == 0
    records = [record for record in untimed_records(one) if set(record) - {"step"}]
    assert records == [record for record in untimed_records(other) if set(record) - {"step"}]


@pytest.fixture(scope="module")
def uninterrupted(tiny_run, tmp_path_factory) -> Path:
    """A run of four steps."""
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    tiny_run(out, run__steps=4, **RANDOM_SETTINGS)
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
def test_two_steps_and_two_resumed_steps_equal_four_steps_exactly(tiny_run, uninterrupted, tmp_path, kind):
    changes = RANDOM_SETTINGS | kind
    if kind:
        uninterrupted = tmp_path / "four"
        tiny_run(uninterrupted, run__steps=4, **changes)
    tiny_run(tmp_path / "two", run__steps=2, **changes)
    shutil.rmtree(tmp_path / "two" / "policy")
    tiny_run(tmp_path / "two", "--resume", run__steps=4, **changes)
    require_equal_runs(uninterrupted, tmp_path / "two", last=4)
    assert [line["step"] for line in step_records(tmp_path / "two")] == [1, 2, 3, 4]


def test_killed_run_resumes_from_its_last_checkpoint(tiny_run, uninterrupted, tmp_path):
    """The folder is that of a run killed in its fourth step: journal lines of steps without a checkpoint, one of them
    incomplete, and a partially written checkpoint."""
    shutil.copytree(uninterrupted, tmp_path / "killed")
    killed = tmp_path / "killed"
    shutil.rmtree(killed / "policy")
    for step in (3, 4):
        shutil.rmtree(killed / "checkpoints" / f"step-{step:08d}")
    (killed / "checkpoints" / ".partial-step-00000003").mkdir()
    text = (killed / "journal.jsonl").read_text()
    (killed / "journal.jsonl").write_text(text[: text.index('{"step": 4') + 30])
    tiny_run(killed, "--resume", run__steps=4, **RANDOM_SETTINGS)
    require_equal_runs(uninterrupted, killed, last=4)


def test_full_disk_is_reported_and_leaves_the_last_checkpoint(
    tiny_run, image_dataset, policies, teacher, tmp_path, limit_files
):
    out = tmp_path / "run"
    tiny_run(out, run__steps=1)
    arguments = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher]
    arguments += ["--out", out, "--resume", *set_options(run__steps=2)]
    limit_files(20_000)
    outcome = run_training(*arguments)
    limit_files(-1)
    assert outcome.code == 2 and len(outcome.stderr.splitlines()) == 1
    assert "the checkpoint of step 2 could not be written" in outcome.stderr
    assert "the checkpoint of step 1 is intact" in outcome.stderr
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000001"]
    assert run_training(*arguments).code == 0
    tiny_run(tmp_path / "uninterrupted", run__steps=2)
    assert largest_difference(exported_weights(tmp_path / "uninterrupted"), exported_weights(out)) == 0


def test_run_without_a_checkpoint_restarts(tiny_run, tmp_path):
    tiny_run(tmp_path / "uninterrupted", run__steps=2, run__keep=9)
    shutil.copytree(tmp_path / "uninterrupted", tmp_path / "unsaved")
    for folder in ("policy", "checkpoints"):
        shutil.rmtree(tmp_path / "unsaved" / folder)
    tiny_run(tmp_path / "unsaved", "--resume", run__steps=2, run__keep=9)
    assert largest_difference(exported_weights(tmp_path / "uninterrupted"), exported_weights(tmp_path / "unsaved")) == 0
    assert [line["step"] for line in step_records(tmp_path / "unsaved")] == [1, 2]


def test_finished_run_exports_its_policy_again_and_keeps_the_earlier_one(tiny_run, tmp_path):
    tiny_run(tmp_path, run__steps=1)
    earlier = exported_weights(tmp_path)
    tiny_run(tmp_path, "--resume", run__steps=1)
    assert largest_difference(earlier, exported_weights(tmp_path)) == 0
    assert (tmp_path / "policy-earlier-1").is_dir()


def test_resume_refuses_changed_settings_except_those_that_may_change(
    tiny_run, image_dataset, policies, teacher, tmp_path
):
    tiny_run(tmp_path, run__steps=1)
    arguments = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset]
    arguments += ["--out", tmp_path, "--resume"]
    for changes, message in [
        ({"optimizer__lr": 0.5, "run__steps": 3}, "optimizer.lr differ from the run"),
        ({"run__seed": 1, "lora__rank": 4}, "run.seed, lora.rank differ from the run"),
        ({"run__batch_size": 8}, "run.batch_size differ"),
    ]:
        outcome = run_training(*arguments, "--teacher", teacher, *set_options(**({"run__steps": 1} | changes)))
        assert outcome.code == 2 and message in outcome.stderr and len(outcome.stderr.splitlines()) == 1
    outcome = run_training(*arguments, "--teacher", "elsewhere", *set_options(run__steps=1))
    assert outcome.code == 2 and "teacher.name differ from the run" in outcome.stderr
    tiny_run(tmp_path, "--resume", run__steps=3, run__log_every=1, run__save_every=1, run__device_batch_size=2)
    assert [line["step"] for line in step_records(tmp_path)] == [1, 2, 3]


def test_resume_refuses_fewer_steps_than_done(tiny_run, image_dataset, policies, teacher, tmp_path):
    tiny_run(tmp_path / "run", run__steps=2)
    arguments = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher]
    outcome = run_training(*arguments, "--out", tmp_path / "run", "--resume", *set_options(run__steps=1))
    assert (outcome.code, len(outcome.stderr.splitlines())) == (2, 1)
    assert "has already done 2 steps, but the recipe asks for 1: pass --set run.steps=N with N of at least 2" in (
        outcome.stderr
    )
    assert not (tmp_path / "run" / "policy-earlier-1").exists()


def test_run_without_its_journal_resumes_and_is_summarized(tiny_run, tmp_path):
    tiny_run(tmp_path / "run", run__steps=2)
    (tmp_path / "run" / "journal.jsonl").unlink()
    assert "trained     2 steps of 4 samples" in tiny_run(tmp_path / "run", "--resume", run__steps=2).stdout
    (tmp_path / "run" / "journal.jsonl").unlink(missing_ok=True)
    tiny_run(tmp_path / "run", "--resume", run__steps=3)
    assert [line["step"] for line in step_records(tmp_path / "run")] == [3]


# Changed inputs


def change_actions(data: Path) -> None:
    (path,) = (data / "data").rglob("*.parquet")
    table = pq.read_table(path)
    rows = [[-value for value in row] for row in table["action"].to_pylist()]
    column = pa.array(rows, type=table["action"].type)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path)


def change_video(data: Path) -> None:
    path = next((data / "videos").rglob("*.mp4"))
    path.write_bytes(path.read_bytes() + b"1")


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name, value in weights.items() if value.dtype == torch.float32)
    save_file(weights | {name: weights[name] + 1}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def copied_run(tiny_run, video_dataset, policies, teacher, tmp_path_factory) -> Callable[[Path], list]:
    """Function that copies a run of one step with its inputs into a folder, and returns the arguments to resume it."""
    folder = tmp_path_factory.mktemp("inputs")
    sources = {"dataset": video_dataset, "policy": policies("smolvla"), "teacher": teacher}
    inputs = {name: shutil.copytree(path, folder / name) for name, path in sources.items()}
    words = ["--recipe", "tiny", *(word for name, path in inputs.items() for word in (f"--{name}", path))]
    assert run_training(*words, "--out", folder / "run", *set_options(run__steps=1)).code == 0

    def copy(target: Path) -> list:
        for name in (*inputs, "run"):
            shutil.copytree(folder / name, target / name)
        recipe = target / "run" / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace(str(folder), str(target)))
        inputs_file = target / "run" / "inputs.json"
        inputs_file.write_text(inputs_file.read_text().replace(str(folder), str(target)))
        words = ["--recipe", "tiny", *(word for name in inputs for word in (f"--{name}", target / name))]
        return [*words, "--out", target / "run", "--resume", *set_options(run__steps=2)]

    return copy


@pytest.mark.parametrize(
    ("name", "change", "messages"),
    [
        ("dataset", change_actions, ["dataset (data/chunk-000/file-000.parquet)", "statistics (action."]),
        ("dataset", change_video, ["the dataset ", "(videos/"]),
        ("policy", change_weights, ["the policy ", "(model.safetensors)"]),
        ("teacher", change_weights, ["the teacher teacher (weights)"]),
    ],
)
def test_resume_refuses_changed_inputs_by_name(copied_run, tmp_path, name, change, messages):
    arguments = copied_run(tmp_path)
    change(tmp_path / name)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    outcome = run_training(*arguments)
    assert (outcome.code, len(outcome.stderr.splitlines())) == (2, 1), outcome.stderr
    assert "have changed since it was started: " in outcome.stderr
    for message in messages:
        assert message in outcome.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_resume_accepts_unchanged_inputs_and_runs_without_fingerprints(copied_run, tmp_path):
    arguments = copied_run(tmp_path)
    assert run_training(*arguments).code == 0
    (tmp_path / "run" / "inputs.json").unlink()
    outcome = run_training(*arguments, *set_options(run__steps=3))
    assert outcome.code == 0
    assert "has no inputs.json, so changes of its inputs until now cannot be detected" in outcome.stdout
    assert (tmp_path / "run" / "inputs.json").is_file()


@pytest.mark.parametrize("text", ["[]", "null", "{", '{"the policy": []}'])
def test_malformed_fingerprints_of_inputs_are_a_user_error(text, copied_run, tmp_path):
    arguments = copied_run(tmp_path)
    (tmp_path / "run" / "inputs.json").write_text(text)
    outcome = run_training(*arguments)
    assert (outcome.code, len(outcome.stderr.splitlines())) == (2, 1), outcome.stderr
    assert "inputs.json" in outcome.stderr


def test_resume_refuses_another_feature_cache_in_the_same_folder(
    tiny_run, image_dataset, policies, teacher, caches, tmp_path
):
    cache = shutil.copytree(caches("int8"), tmp_path / "cache")
    words = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher]
    words += ["--cache", cache, "--out", tmp_path / "run"]
    assert run_training(*words, *set_options(run__steps=1)).code == 0
    shutil.rmtree(cache)
    shutil.copytree(caches("bf16"), cache)
    outcome = run_training(*words, "--resume", *set_options(run__steps=2))
    assert outcome.code == 2 and f"the feature cache {cache} (manifest.json)" in outcome.stderr


def test_damaged_checkpoint_stops_the_resumed_run_and_the_previous_one_is_offered(tiny_run, copied_run, tmp_path):
    arguments = copied_run(tmp_path)
    assert run_training(*arguments).code == 0
    damaged = tmp_path / "run" / "checkpoints" / "step-00000002"
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-1] ^= 0b0001_0000
    (damaged / "model.safetensors").write_bytes(content)
    outcome = run_training(*arguments, *set_options(run__steps=3))
    assert (outcome.code, len(outcome.stderr.splitlines())) == (2, 1), outcome.stderr
    assert f"remove the folder {damaged} to resume from the checkpoint before it, of step 1" in outcome.stderr
    shutil.rmtree(damaged)
    assert run_training(*arguments, *set_options(run__steps=3)).code == 0
    assert [line["step"] for line in step_records(tmp_path / "run")] == [1, 2, 3]
