"""Runs from end to end on tiny models: they learn, they write down what they do, they survive what is not finite."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny import TINY_POLICIES
from rocket_hf.training import train as loop
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.data.mixture import split_episodes
from rocket_hf.training.recipe import DatasetConfig
from rocket_hf.training.recipe_files import read_recipe

from .conftest import checkpoint, exported, journal, largest_difference, run_training, settings, steps_of

pytestmark = pytest.mark.needs_lerobot

FULL = {f"parts__{part}": "full" for part in ("vision", "language", "expert", "heads")}
PARTS = ("data", "teacher", "student", "optimizer")


def mean(lines: list[dict], key: str) -> float:
    return sum(line[key] for line in lines) / len(lines)


@pytest.fixture(scope="module")
def learnt(tiny_run, tmp_path_factory) -> Path:
    """Sixty steps of one family, everything that a run has turned on."""
    out = tmp_path_factory.mktemp("runs") / "learnt"
    outcome = tiny_run(
        out, family="openvla-oft", run__steps=60, run__save_every=20, run__validate_every=20, run__keep=1,
        run__ema=0.9, run__batch_size=8, optimizer__lr=2e-3, optimizer__clip_norm=5.0, schedule__warmup=5, **FULL,
    )  # fmt: skip
    (out / "said.txt").write_text(outcome.stdout)
    return out


def test_losses_fall(learnt):
    lines = steps_of(learnt)
    assert [line["step"] for line in lines] == list(range(1, 61))
    for name in [name for name in lines[0] if name.startswith(("action/", "alignment/"))]:
        assert mean(lines[-10:], name) < 0.9 * mean(lines[:10], name), name


def test_the_best_checkpoint_is_kept_beside_the_last(learnt):
    errors = {line["step"]: line["validation/error"] for line in journal(learnt) if "validation/error" in line}
    best = min(errors, key=lambda step: errors[step])
    assert list(errors) == [20, 40, 60] and best != 60
    state = json.loads((learnt / "checkpoints" / "step-00000060" / "state.json").read_text())
    assert (state["best_step"], state["best_error"]) == (best, errors[best])
    kept = sorted(path.name for path in (learnt / "checkpoints").iterdir())
    assert kept == [f"step-{best:08d}", "step-00000060"]


def test_every_part_of_every_step_is_written_down(learnt):
    lines = steps_of(learnt)
    wanted = {"step", "loss", "action/l1", "alignment/1-2", "alignment/2-3", "alignment/3-4", "gradient_norm"}
    wanted |= {"skipped", "alignment_weight", "rate/heads", "rate/projector", "rate/policy"}
    wanted |= {f"seconds/{part}" for part in PARTS}
    for line in lines:
        assert set(line) == wanted
        aligned = sum(line[f"alignment/{pair}"] for pair in ("1-2", "2-3", "3-4")) / 3
        assert line["loss"] == pytest.approx(line["action/l1"] + 0.5 * aligned, rel=1e-4)
        assert line["skipped"] == 0 and line["gradient_norm"] > 0 and line["alignment_weight"] == 0.5
        assert all(line[f"seconds/{part}"] > 0 for part in PARTS)
    assert [line["rate/policy"] for line in lines[:6]] == pytest.approx([4e-4, 8e-4, 1.2e-3, 1.6e-3, 2e-3, 2e-3])
    speeds = [line for line in journal(learnt) if "samples_per_second" in line]
    assert [line["step"] for line in speeds] == list(range(5, 61, 5))
    assert all(line["samples_per_second"] > 0 for line in speeds)


def test_the_recipe_is_saved_with_the_run(learnt):
    recipe = read_recipe(str(learnt / "recipe.yaml"))
    assert (recipe.name, recipe.run.ema, recipe.optimizer.lr) == ("tiny", 0.9, 2e-3)


def test_it_says_what_it_did(learnt):
    said = (learnt / "said.txt").read_text()
    assert str(learnt / "policy") in said and "60 steps" in said


def test_the_average_is_what_is_exported(learnt):
    average, weights = checkpoint(learnt, 60, "average"), checkpoint(learnt, 60)
    policy = exported(learnt)
    assert largest_difference(policy, {name: average[name] for name in policy}) == 0
    assert largest_difference(policy, {name: weights[name] for name in policy}) > 1e-4

    assert not any(name.startswith("alignment_head") for name in policy)


def test_the_validation_error_is_the_distance_of_the_policys_actions_by_hand(learnt, stored):
    """With the exported policy and its own processor, on the held-out episode, frame by frame."""
    policy = RocketForActionPrediction.from_pretrained(learnt / "policy")
    processor = RocketProcessor.from_pretrained(learnt / "policy")
    data = RobotDataset(DatasetConfig(id=str(stored)), policy.config)
    _, held_out = split_episodes(data.episodes, 0.05, seed=42)
    frames = [frame for episode in held_out for frame in data.frames_of(episode)]
    chosen = [frames[(2 * number + 1) * len(frames) // 16] for number in range(8)]  # eight, evenly spread
    distances = []
    for frame in chosen:
        sample = data.sample(frame)
        chunk = policy.predict_action_chunk(**processor(sample["images"], sample["task"], sample["state"]))
        predicted = processor.unnormalize_actions(chunk)[0]
        distances.append((predicted - sample["actions"]).abs()[~sample["action_is_pad"]])
    by_hand = torch.cat(distances).mean(0)
    (line,) = [line for line in journal(learnt) if line["step"] == 60 and "validation/error" in line]
    assert [line[f"validation/{number}"] for number in range(5)] == pytest.approx(by_hand.tolist(), rel=1e-4)
    assert line["validation/error"] == pytest.approx(by_hand.mean().item(), rel=1e-4)


STRANGER = """
import sys
sys.modules["rocket_hf"] = sys.modules["lerobot"] = sys.modules["peft"] = None  # importing one of them raises
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

folder, observed, out = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
seen = load_file(observed)
inputs = processor(
    images={name: seen[name] for name in model.config.cameras}, task="follow the red disc", state=seen["state"]
)
chunk = model.predict_action_chunk(**inputs, generator=torch.Generator().manual_seed(0))
save_file({"actions": processor.unnormalize_actions(chunk).contiguous()}, out)
"""


@pytest.mark.slow
def test_a_stranger_gets_the_trained_models_actions(learnt, stored, tmp_path):
    """The model of the last checkpoint, built from the base policy and the averaged weights, against AutoModel in a
    process without this package."""
    from safetensors.torch import save_file

    config = RocketForActionPrediction.config_class.from_pretrained(learnt / "policy")
    sample = RobotDataset(DatasetConfig(id=str(stored)), config).sample(20)
    observed = {name: picture.contiguous() for name, picture in sample["images"].items()} | {"state": sample["state"]}
    save_file({name: value.clone() for name, value in observed.items()}, tmp_path / "observed.safetensors")
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    arguments = [learnt / "policy", tmp_path / "observed.safetensors", tmp_path / "actions.safetensors"]
    subprocess.run([sys.executable, "-c", STRANGER, *arguments], check=True, env=environment, cwd=tmp_path)

    trained = RocketForActionPrediction(config).eval()
    weights = checkpoint(learnt, 60, "average")
    trained.load_state_dict({name: value for name, value in weights.items() if name.startswith("policy.")}, strict=True)
    processor = RocketProcessor.from_pretrained(learnt / "policy")
    inputs = processor(sample["images"], "follow the red disc", sample["state"])
    expected = processor.unnormalize_actions(
        trained.predict_action_chunk(**inputs, generator=torch.Generator().manual_seed(0))
    )
    found = load_file(tmp_path / "actions.safetensors")["actions"]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", TINY_POLICIES)
def test_every_family_trains_with_an_alignment(tiny_run, tmp_path, family):
    tiny_run(tmp_path, family=family, run__steps=3)
    lines = steps_of(tmp_path)
    assert len(lines) == 3 and all(line["gradient_norm"] > 0 for line in lines)
    assert {name for name in lines[0] if name.startswith("alignment/")} == {
        f"alignment/{p}" for p in ("1-2", "2-3", "3-4")
    }
    assert not any("lora" in name or "alignment" in name for name in exported(tmp_path))


def test_a_dimension_that_never_moves_is_no_obstacle(tiny_run, tmp_path, stored, monkeypatch):
    from rocket_hf.tiny_dataset import write_tiny_dataset

    data = write_tiny_dataset(tmp_path / "still", 2, 4)
    spoil_actions(data, lambda row, number: [0.25, *row[1:]])
    tiny_run(tmp_path / "run", "--dataset", data, "--set", f"data.datasets=[{{id: {data}}}]", run__steps=2)
    assert all(line["loss"] < 100 for line in steps_of(tmp_path / "run"))


# What is not finite


def spoil_actions(folder: Path, change) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (path,) = (folder / "data").rglob("*.parquet")
    table = pq.read_table(path)
    rows = [change(row, number) for number, row in enumerate(table["action"].to_pylist())]
    column = pa.array(rows, type=table["action"].type)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path)


HUGE = 1e30  # its square is no float32


def test_a_step_that_is_not_finite_is_skipped_counted_and_named(tiny_run, copied, tmp_path):
    spoil_actions(copied, lambda row, number: [HUGE] * 5 if number == 20 else row)
    tiny_run(
        tmp_path / "run", "--set", f"data.datasets=[{{id: {copied}}}]", run__steps=12, run__log_every=3,
        run__save_every=1, run__keep=99, robot__action_normalization="identity", data__validation=0,
    )  # fmt: skip
    skipped = [line["step"] for line in steps_of(tmp_path / "run") if line["skipped"]]
    assert skipped and len(skipped) < 12
    named = {line["step"]: line["skipped_samples"] for line in journal(tmp_path / "run") if "skipped_samples" in line}
    assert list(named) == skipped
    for samples in named.values():
        assert len(samples) == 4
        # Frames 17 .. 20 have frame 20, the eighth of the second episode, in their chunks of four actions.
        assert any(sample["episode_index"] == 1 and 5 <= sample["frame_index"] <= 8 for sample in samples)
    for step in skipped:
        former = checkpoint(tmp_path / "run", step - 1) if step > 1 else None
        if former is not None:
            assert largest_difference(former, checkpoint(tmp_path / "run", step)) == 0
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000012" / "state.json").read_text())
    assert state["skipped"] == len(skipped)
    assert all(weight.isfinite().all() for weight in exported(tmp_path / "run").values())


def test_too_many_in_a_row_stop_the_run_and_save_the_batch(stored, teacher, policies, tmp_path):
    outcome = run_training(
        "--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", stored, "--teacher", teacher,
        "--out", tmp_path / "run", *settings(optimizer__lr=1e30, run__most_skipped=3, run__log_every=1),
    )  # fmt: skip
    assert outcome.code == 2
    assert "3 steps in a row had no finite loss" in outcome.stderr and len(outcome.stderr.splitlines()) == 1
    (path,) = (tmp_path / "run").glob("not-finite-*.safetensors")
    assert str(path) in outcome.stderr
    batch = load_file(path)
    assert batch["0.actions"].shape == (4, 4, 5) and batch["0.images.0"].dtype == torch.uint8
    lines = steps_of(tmp_path / "run")
    assert [line["skipped"] for line in lines[-3:]] == [1, 1, 1] and lines[0]["skipped"] == 0
    assert batch["0.frame_index"].tolist() == [
        sample["frame_index"] for sample in journal(tmp_path / "run")[-1]["skipped_samples"]
    ]


# Signals, schedules, memory, precision


def test_sigterm_saves_and_exits_and_the_run_goes_on(tiny_run, stored, teacher, policies, tmp_path, monkeypatch):
    tiny_run(tmp_path / "whole", run__steps=4, run__ema=0.9)
    step = loop.training_step

    def step_with_signal(run, *more):
        if run.progress.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(run, *more)

    given = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", stored, "--teacher", teacher]
    given += ["--out", tmp_path / "stopped", *settings(run__steps=4, run__ema=0.9)]
    monkeypatch.setattr(loop, "training_step", step_with_signal)
    outcome = run_training(*given)
    assert outcome.code == 130 and "stopped by a signal after step 2: --resume goes on from there" in outcome.stderr
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    assert run_training(*given, "--resume").code == 0
    assert largest_difference(exported(tmp_path / "whole"), exported(tmp_path / "stopped")) == 0


@pytest.mark.parametrize(("schedule", "weights"), [("stop", [0.5, 0.5, 0.0, 0.0]), ("linear", [0.5, 0.25, 0.0, 0.0])])
def test_alignment_ends_as_its_schedule_says_and_the_teacher_rests(tiny_run, tmp_path, schedule, weights):
    tiny_run(tmp_path, run__steps=4, alignment__schedule=schedule, alignment__until=2, run__save_every=1, run__keep=9)
    lines = steps_of(tmp_path)
    assert [line["alignment_weight"] for line in lines] == weights
    assert [line["loss"] == pytest.approx(line["action/flow_matching"]) for line in lines] == [False, False, True, True]
    assert max(line["seconds/teacher"] for line in lines[2:]) < min(line["seconds/teacher"] for line in lines[:2])


def test_gradient_checkpointing_changes_nothing(tiny_run, tmp_path):
    for name, change in (("plain", False), ("checkpointed", True)):
        tiny_run(tmp_path / name, run__steps=2, run__gradient_checkpointing=change, **FULL)
    for one, other in zip(steps_of(tmp_path / "plain"), steps_of(tmp_path / "checkpointed"), strict=True):
        for key in ("loss", "gradient_norm"):
            assert other[key] == pytest.approx(one[key], rel=1e-6)
    assert largest_difference(checkpoint(tmp_path / "plain", 2), checkpoint(tmp_path / "checkpointed", 2)) < 1e-6


@pytest.mark.slow
def test_compiled_layers_train_what_plain_ones_train(tiny_run, tmp_path):
    for name, change in (("plain", False), ("compiled", True)):
        tiny_run(tmp_path / name, family="openvla-oft", run__steps=2, run__compile=change)
    for one, other in zip(steps_of(tmp_path / "plain"), steps_of(tmp_path / "compiled"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_four_passes_of_two_are_one_pass_of_eight(tiny_run, tmp_path):
    for name, each in (("one", 8), ("four", 2)):
        tiny_run(
            tmp_path / name, run__steps=5, run__batch_size=8, run__device_batch_size=each, parts__expert="full",
            optimizer__clip_norm=1.0,
        )  # fmt: skip
    assert largest_difference(checkpoint(tmp_path / "one", 5), checkpoint(tmp_path / "four", 5)) < 1e-5
    for one, other in zip(steps_of(tmp_path / "one"), steps_of(tmp_path / "four"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_a_bfloat16_base_trains_in_mixed_precision(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    tiny_run(tmp_path, run__steps=3, run__base_dtype="bfloat16")
    assert all(0 < line["loss"] < 10 for line in steps_of(tmp_path))
    assert {tensor.dtype for tensor in checkpoint(tmp_path, 3).values()} == {torch.float32}
    assert torch.bfloat16 in {tensor.dtype for tensor in exported(tmp_path).values()}


def test_cached_features_train_what_live_ones_train(tiny_run, caches, tmp_path):
    tiny_run(tmp_path / "live", run__steps=3)
    tiny_run(tmp_path / "cached", "--cache", caches("bf16"), run__steps=3)
    for one, other in zip(steps_of(tmp_path / "live"), steps_of(tmp_path / "cached"), strict=True):
        for pair in ("1-2", "2-3", "3-4"):
            assert other[f"alignment/{pair}"] == pytest.approx(one[f"alignment/{pair}"], rel=0.01)


def test_a_mixture_of_two_datasets_trains(tiny_run, stored, filmed, tmp_path):
    tiny_run(tmp_path, "--dataset", filmed, run__steps=2)
    shutil.rmtree(tmp_path / "checkpoints")
    assert len(steps_of(tmp_path)) == 2
