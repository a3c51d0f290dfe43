"""Training runs with tiny models: learning, journal, checkpoints, export, non-finite steps, signals and precision."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny import TINY_POLICIES
from rocket_hf.training import train as loop
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.data.mixture import split_episodes
from rocket_hf.training.recipe import DatasetConfig
from rocket_hf.training.recipe_files import read_recipe

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
PHASES = ("data", "teacher", "student", "optimizer")


def mean(lines: list[dict], key: str) -> float:
    return sum(line[key] for line in lines) / len(lines)


@pytest.fixture(scope="module")
def trained_run(tiny_run, tmp_path_factory) -> Path:
    """Sixty steps with validation, moving average, clipping, warm-up and several checkpoints."""
    out = tmp_path_factory.mktemp("runs") / "trained"
    outcome = tiny_run(
        out, family="openvla-oft", run__steps=60, run__save_every=20, run__validate_every=20, run__keep=1,
        run__ema=0.9, run__batch_size=8, optimizer__lr=3e-4, optimizer__clip_norm=5.0, schedule__warmup=5, **FULL,
    )  # fmt: skip
    (out / "stdout.txt").write_text(outcome.stdout)
    return out


def test_losses_decrease(trained_run):
    lines = step_records(trained_run)
    assert [line["step"] for line in lines] == list(range(1, 61))
    for name in [name for name in lines[0] if name.startswith(("action/", "alignment/"))]:
        assert mean(lines[-10:], name) < 0.9 * mean(lines[:10], name), name


def test_best_and_last_checkpoints_are_kept(trained_run):
    errors = {
        line["step"]: line["validation/error"] for line in journal_records(trained_run) if "validation/error" in line
    }
    best = min(errors, key=lambda step: errors[step])
    assert list(errors) == [20, 40, 60] and best != 60
    state = json.loads((trained_run / "checkpoints" / "step-00000060" / "state.json").read_text())
    assert (state["best_step"], state["best_error"]) == (best, errors[best])
    kept = sorted(path.name for path in (trained_run / "checkpoints").iterdir())
    assert kept == [f"step-{best:08d}", "step-00000060"]


def test_journal_contains_losses_rates_and_seconds_of_every_step(trained_run):
    lines = step_records(trained_run)
    keys = {"step", "loss", "action/l1", "alignment/1-2", "alignment/2-3", "alignment/3-4", "gradient_norm"}
    keys |= {"skipped", "alignment_weight", "rate/heads", "rate/projector", "rate/policy"}
    keys |= {f"seconds/{phase}" for phase in PHASES}
    for line in lines:
        assert set(line) == keys
        aligned = sum(line[f"alignment/{pair}"] for pair in ("1-2", "2-3", "3-4")) / 3
        assert line["loss"] == pytest.approx(line["action/l1"] + 0.5 * aligned, rel=1e-4)
        assert line["skipped"] == 0 and line["gradient_norm"] > 0 and line["alignment_weight"] == 0.5
        assert all(line[f"seconds/{phase}"] > 0 for phase in PHASES)
    assert [line["rate/policy"] for line in lines[:6]] == pytest.approx([6e-5, 1.2e-4, 1.8e-4, 2.4e-4, 3e-4, 3e-4])
    speeds = [line for line in journal_records(trained_run) if "samples_per_second" in line]
    assert [line["step"] for line in speeds] == list(range(5, 61, 5))
    assert all(line["samples_per_second"] > 0 for line in speeds)


def test_recipe_is_saved_with_the_run(trained_run):
    recipe = read_recipe(str(trained_run / "recipe.yaml"))
    assert (recipe.name, recipe.run.ema, recipe.optimizer.lr) == ("tiny", 0.9, 3e-4)


def test_summary_contains_policy_folder_and_steps(trained_run):
    summary = (trained_run / "stdout.txt").read_text()
    assert str(trained_run / "policy") in summary and "60 steps" in summary


def test_averaged_weights_are_exported(trained_run):
    average, weights = checkpoint_tensors(trained_run, 60, "average"), checkpoint_tensors(trained_run, 60)
    policy = exported_weights(trained_run)
    assert largest_difference(policy, {name: average[name] for name in policy}) == 0
    assert largest_difference(policy, {name: weights[name] for name in policy}) > 1e-4

    assert not any(name.startswith("alignment_head") for name in policy)


def test_validation_error_equals_the_distance_between_actions_by_hand(trained_run, image_dataset):
    """The exported policy and its processor predict the actions of the held-out episode, frame by frame."""
    policy = RocketForActionPrediction.from_pretrained(trained_run / "policy")
    processor = RocketProcessor.from_pretrained(trained_run / "policy")
    data = RobotDataset(DatasetConfig(id=str(image_dataset)), policy.config)
    _, held_out = split_episodes(data.episodes, 0.05, seed=42)
    frames = [frame for episode in held_out for frame in data.frame_range(episode)]
    chosen = [frames[(2 * number + 1) * len(frames) // 16] for number in range(8)]  # eight, evenly spread
    distances = []
    for frame in chosen:
        sample = data.sample(frame)
        chunk = policy.predict_action_chunk(**processor(sample["images"], sample["task"], sample["state"]))
        predicted = processor.unnormalize_actions(chunk)[0]
        distances.append((predicted - sample["actions"]).abs()[~sample["action_is_pad"]])
    by_hand = torch.cat(distances).mean(0)
    (line,) = [line for line in journal_records(trained_run) if line["step"] == 60 and "validation/error" in line]
    assert [line[f"validation/a{number}"] for number in range(5)] == pytest.approx(by_hand.tolist(), rel=1e-4)
    assert line["validation/error"] == pytest.approx(by_hand.mean().item(), rel=1e-4)


PREDICT_IN_CLEAN_PROCESS = """
import sys
sys.modules["rocket_hf"] = sys.modules["lerobot"] = sys.modules["peft"] = None  # importing one of them raises
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor

folder, observation_file, out = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
observation = load_file(observation_file)
inputs = processor(
    images={name: observation[name] for name in model.config.cameras},
    task="follow the red disc",
    state=observation["state"],
)
chunk = model.predict_action_chunk(**inputs, generator=torch.Generator().manual_seed(0))
save_file({"actions": processor.unnormalize_actions(chunk).contiguous()}, out)
"""


@pytest.mark.slow
def test_exported_policy_predicts_the_trained_models_actions_in_clean_process(trained_run, image_dataset, tmp_path):
    """AutoModel loads the exported policy in a process without this package. The reference is the model with the
    averaged weights of the last checkpoint."""
    from safetensors.torch import save_file

    config = RocketForActionPrediction.config_class.from_pretrained(trained_run / "policy")
    sample = RobotDataset(DatasetConfig(id=str(image_dataset)), config).sample(20)
    observation = {name: image.contiguous() for name, image in sample["images"].items()} | {"state": sample["state"]}
    save_file({name: value.clone() for name, value in observation.items()}, tmp_path / "observation.safetensors")
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    arguments = [trained_run / "policy", tmp_path / "observation.safetensors", tmp_path / "actions.safetensors"]
    subprocess.run(
        [sys.executable, "-c", PREDICT_IN_CLEAN_PROCESS, *arguments], check=True, env=environment, cwd=tmp_path
    )

    trained = RocketForActionPrediction(config).eval()
    weights = checkpoint_tensors(trained_run, 60, "average")
    trained.load_state_dict({name: value for name, value in weights.items() if name.startswith("policy.")}, strict=True)
    processor = RocketProcessor.from_pretrained(trained_run / "policy")
    inputs = processor(sample["images"], "follow the red disc", sample["state"])
    expected = processor.unnormalize_actions(
        trained.predict_action_chunk(**inputs, generator=torch.Generator().manual_seed(0))
    )
    predicted = load_file(tmp_path / "actions.safetensors")["actions"]
    torch.testing.assert_close(predicted, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", TINY_POLICIES)
def test_every_policy_family_trains_with_alignment(tiny_run, tmp_path, family):
    tiny_run(tmp_path, family=family, run__steps=3)
    lines = step_records(tmp_path)
    assert len(lines) == 3 and all(line["gradient_norm"] > 0 for line in lines)
    assert {name for name in lines[0] if name.startswith("alignment/")} == {
        f"alignment/{pair}" for pair in ("1-2", "2-3", "3-4")
    }
    assert not any("lora" in name or "alignment" in name for name in exported_weights(tmp_path))


def test_constant_action_dimension_trains(tiny_run, tmp_path, image_dataset, monkeypatch):
    from rocket_hf.tiny_dataset import write_tiny_dataset

    data = write_tiny_dataset(tmp_path / "still", 2, 4)
    rewrite_actions(data, lambda row, number: [0.25, *row[1:]])
    tiny_run(tmp_path / "run", "--dataset", data, "--set", f"data.datasets=[{{id: {data}}}]", run__steps=2)
    assert all(line["loss"] < 100 for line in step_records(tmp_path / "run"))


# Non-finite steps


def rewrite_actions(folder: Path, change) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (path,) = (folder / "data").rglob("*.parquet")
    table = pq.read_table(path)
    rows = [change(row, number) for number, row in enumerate(table["action"].to_pylist())]
    column = pa.array(rows, type=table["action"].type)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), path)


HUGE = 1e30  # its square overflows float32


def test_non_finite_step_is_skipped_counted_and_its_samples_recorded(tiny_run, dataset_copy, tmp_path):
    rewrite_actions(dataset_copy, lambda row, number: [HUGE] * 5 if number == 20 else row)
    tiny_run(
        tmp_path / "run", "--set", f"data.datasets=[{{id: {dataset_copy}}}]", run__steps=12, run__log_every=3,
        run__save_every=1, run__keep=99, robot__action_normalization="identity", data__validation=0,
    )  # fmt: skip
    skipped = [line["step"] for line in step_records(tmp_path / "run") if line["skipped"]]
    assert skipped and len(skipped) < 12
    recorded = {
        line["step"]: line["skipped_samples"] for line in journal_records(tmp_path / "run") if "skipped_samples" in line
    }
    assert list(recorded) == skipped
    for samples in recorded.values():
        assert len(samples) == 4
        # The action chunks of frames 17 .. 20 contain frame 20, the eighth frame of the second episode.
        assert any(sample["episode_index"] == 1 and 5 <= sample["frame_index"] <= 8 for sample in samples)
    for step in skipped:
        previous = checkpoint_tensors(tmp_path / "run", step - 1) if step > 1 else None
        if previous is not None:
            assert largest_difference(previous, checkpoint_tensors(tmp_path / "run", step)) == 0
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000012" / "state.json").read_text())
    assert state["skipped"] == len(skipped)
    assert all(weight.isfinite().all() for weight in exported_weights(tmp_path / "run").values())


def test_too_many_consecutive_non_finite_steps_stop_the_run_and_save_the_batch(
    image_dataset, teacher, policies, tmp_path
):
    outcome = run_training(
        "--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher,
        "--out", tmp_path / "run", *set_options(optimizer__lr=1e30, run__max_skipped_steps=3, run__log_every=1),
    )  # fmt: skip
    assert outcome.code == 2
    assert "3 consecutive steps had a non-finite loss" in outcome.stderr and len(outcome.stderr.splitlines()) == 1
    (path,) = (tmp_path / "run").glob("not-finite-*.safetensors")
    assert str(path) in outcome.stderr
    batch = load_file(path)
    assert batch["0.actions"].shape == (4, 4, 5) and batch["0.images.0"].dtype == torch.uint8
    lines = step_records(tmp_path / "run")
    assert [line["skipped"] for line in lines[-3:]] == [1, 1, 1] and lines[0]["skipped"] == 0
    assert batch["0.frame_index"].tolist() == [
        sample["frame_index"] for sample in journal_records(tmp_path / "run")[-1]["skipped_samples"]
    ]


# Signals, schedules, memory, precision


def test_sigterm_saves_a_checkpoint_from_which_the_run_resumes(
    tiny_run, image_dataset, teacher, policies, tmp_path, monkeypatch
):
    tiny_run(tmp_path / "uninterrupted", run__steps=4, run__ema=0.9)
    original_step = loop.training_step

    def step_with_signal(run, *arguments):
        if run.progress.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original_step(run, *arguments)

    arguments = ["--recipe", "tiny", "--policy", policies("smolvla"), "--dataset", image_dataset, "--teacher", teacher]
    arguments += ["--out", tmp_path / "stopped", *set_options(run__steps=4, run__ema=0.9)]
    monkeypatch.setattr(loop, "training_step", step_with_signal)
    outcome = run_training(*arguments)
    assert outcome.code == 130 and "stopped by a signal after step 2: continue with --resume" in outcome.stderr
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    assert run_training(*arguments, "--resume").code == 0
    assert largest_difference(exported_weights(tmp_path / "uninterrupted"), exported_weights(tmp_path / "stopped")) == 0


@pytest.mark.parametrize(("schedule", "weights"), [("stop", [0.5, 0.5, 0.0, 0.0]), ("linear", [0.5, 0.25, 0.0, 0.0])])
def test_alignment_and_teacher_stop_with_the_schedule(tiny_run, tmp_path, schedule, weights):
    tiny_run(tmp_path, run__steps=4, alignment__schedule=schedule, alignment__until=2, run__save_every=1, run__keep=9)
    lines = step_records(tmp_path)
    assert [line["alignment_weight"] for line in lines] == weights
    assert [line["loss"] == pytest.approx(line["action/flow_matching"]) for line in lines] == [False, False, True, True]
    assert max(line["seconds/teacher"] for line in lines[2:]) < min(line["seconds/teacher"] for line in lines[:2])


def test_gradient_checkpointing_trains_the_same_weights(tiny_run, tmp_path):
    for name, change in (("plain", False), ("checkpointed", True)):
        tiny_run(tmp_path / name, run__steps=2, run__gradient_checkpointing=change, **FULL)
    for one, other in zip(step_records(tmp_path / "plain"), step_records(tmp_path / "checkpointed"), strict=True):
        for key in ("loss", "gradient_norm"):
            assert other[key] == pytest.approx(one[key], rel=1e-6)
    assert (
        largest_difference(checkpoint_tensors(tmp_path / "plain", 2), checkpoint_tensors(tmp_path / "checkpointed", 2))
        < 1e-6
    )


@pytest.mark.slow
def test_compiled_layers_have_the_same_losses(tiny_run, tmp_path):
    for name, change in (("plain", False), ("compiled", True)):
        tiny_run(tmp_path / name, family="openvla-oft", run__steps=2, run__compile=change)
    for one, other in zip(step_records(tmp_path / "plain"), step_records(tmp_path / "compiled"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_four_passes_of_two_samples_equal_one_pass_of_eight(tiny_run, tmp_path):
    for name, per_pass in (("one", 8), ("four", 2)):
        tiny_run(
            tmp_path / name, run__steps=5, run__batch_size=8, run__device_batch_size=per_pass, parts__expert="full",
            optimizer__clip_norm=1.0,
        )  # fmt: skip
    assert largest_difference(checkpoint_tensors(tmp_path / "one", 5), checkpoint_tensors(tmp_path / "four", 5)) < 1e-5
    for one, other in zip(step_records(tmp_path / "one"), step_records(tmp_path / "four"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_bfloat16_base_trains_in_mixed_precision(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    tiny_run(tmp_path, run__steps=3, run__base_dtype="bfloat16")
    assert all(0 < line["loss"] < 10 for line in step_records(tmp_path))
    assert {tensor.dtype for tensor in checkpoint_tensors(tmp_path, 3).values()} == {torch.float32}
    assert torch.bfloat16 in {tensor.dtype for tensor in exported_weights(tmp_path).values()}


def test_cached_features_have_the_same_alignment_losses_as_live_ones(tiny_run, caches, tmp_path):
    tiny_run(tmp_path / "live", run__steps=3)
    tiny_run(tmp_path / "cached", "--cache", caches("bf16"), run__steps=3)
    for one, other in zip(step_records(tmp_path / "live"), step_records(tmp_path / "cached"), strict=True):
        for pair in ("1-2", "2-3", "3-4"):
            assert other[f"alignment/{pair}"] == pytest.approx(one[f"alignment/{pair}"], rel=0.01)


def test_mixture_of_two_datasets_trains(tiny_run, image_dataset, video_dataset, tmp_path):
    tiny_run(tmp_path, "--dataset", video_dataset, run__steps=2)
    shutil.rmtree(tmp_path / "checkpoints")
    assert len(step_records(tmp_path)) == 2


def test_layer_pairs_are_chosen_by_depth_for_the_given_policy_and_teacher(tiny_run, tmp_path):
    """Policy with 3 blocks, teacher with 4. The run stores the chosen layers, and resumes with the same options."""
    changes = {"alignment__pairs": 2, "alignment__strategy": "deep", "alignment__nesting": "none"}
    tiny_run(tmp_path / "run", run__steps=1, **changes)
    alignment = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["alignment"]
    assert (alignment["student_layers"], alignment["teacher_layers"]) == ([2, 3], [3, 4])
    assert {name for name in step_records(tmp_path / "run")[0] if name.startswith("alignment/")} == {
        "alignment/2-3", "alignment/3-4",
    }  # fmt: skip
    tiny_run(tmp_path / "run", "--resume", run__steps=2, **changes)
    assert len(step_records(tmp_path / "run")) == 2
