"""Invalid input: one message and exit code 2 before training starts, and no files that block a second run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from rocket_hf.tiny_dataset import write_tiny_dataset

from .conftest import run_training, set_options, write_policy

pytestmark = pytest.mark.needs_lerobot

FRONT, WRIST = "observation.images.front", "observation.images.wrist"


@pytest.fixture(scope="module")
def other_data(tmp_path_factory) -> Callable[..., Path]:
    """Function that writes datasets that differ from the one that the policies fit."""
    folder = tmp_path_factory.mktemp("other_datasets")
    return lambda name, **changes: write_tiny_dataset(folder / name, 2, 4, **changes)


@pytest.fixture
def refused(image_dataset, teacher, policies, tmp_path) -> Callable[..., None]:
    """Function that trains with one invalid argument, and requires one error message and an unchanged output folder."""
    valid = {"recipe": "tiny", "policy": policies("smolvla"), "dataset": image_dataset, "teacher": teacher}

    def run(*messages: str, out: Path | None = None, more: tuple = (), changes: dict | None = None, **given) -> None:
        out = tmp_path / "run" if out is None else out
        before = sorted(out.rglob("*")) if out.exists() else None
        options = [word for name, value in (valid | given).items() for word in (f"--{name}", value) if value]
        outcome = run_training(*options, "--out", out, *set_options(**changes or {}), *more)
        assert outcome.code == 2, outcome
        assert len(outcome.stderr.splitlines()) == 1, outcome.stderr
        assert outcome.stderr.startswith("train.py: ")
        for message in messages:
            assert message in outcome.stderr
        assert (sorted(out.rglob("*")) if out.exists() else None) == before

    return run


# The recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer__lrr": 1}, "OptimizerConfig has no key optimizer.lrr: did you mean 'lr'?"),
        ({"run__steps": "many"}, "run.steps must be int, got 'many'"),
        ({"optimizer__lr": -1}, "optimizer.lr must be above 0"),
        ({"optimizer__betas": [0.9, 1.5]}, "optimizer.betas must be two numbers from 0 to below 1"),
        ({"data__validation": 1}, "data.validation must be between 0 and"),
        ({"schedule__kind": "step"}, "schedule.kind=step needs schedule.at"),
        ({"alignment__schedule": "linear"}, "alignment.until=None does not fit alignment.schedule=linear"),
        ({"run__batch_size": 4, "run__device_batch_size": 3}, "run.batch_size=4 is not a multiple of"),
        ({"run__trackers": ["wandbb"]}, "there is no tracker 'wandbb': did you mean 'wandb'?"),
        ({"run__base_dtype": "bfloat16"}, "accelerate launch --mixed_precision bf16"),
        ({"parts__vision": "frozen", "parts__language": "frozen", "parts__expert": "frozen", "parts__heads": "frozen"},
         "every part of the policy is frozen"),
        ({"parts__vision": "frozen", "parts__language": "frozen"},
         "the alignment of student layers [1, 2, -1] would train no weight before these layers"),
        ({"alignment__student_layers": [1, 2, 7]},
         "alignment.student_layers: layer 7 does not exist: the model has 3 blocks, so its layers are 0..3 or -4..-1; "
         "set alignment.pairs=N to choose N pairs by depth, or let `rocket-hf layers` suggest pairs"),
        ({"alignment__teacher_layers": [2, 3, 9]},
         "alignment.teacher_layers: vggt has no layer 9: its 4 blocks are layers 1..4"),
        ({"alignment__pairs": 4}, "4 pairs are not possible with 3 student and 4 teacher layers"),
        ({"alignment__pairs": 0}, "alignment.pairs must be at least 1, got 0"),
        ({"alignment__strategy": "deeep"}, "alignment.strategy: invalid value 'deeep'; did you mean 'deep'?"),
        ({"alignment__teacher_layers": [2, 3]}, "3 student layers and 2 teacher layers"),
        ({"alignment__student_layers": [2, 1, 3]}, "student_layers must go from shallow to deep"),
        ({"alignment__nested_widths": [3]}, "nested_widths must be given exactly when"),
        ({"teacher__resolution": "best"}, "teacher.resolution must be camera, teacher or a number of pixels"),
        ({"teacher__revision": "v1"}, "is a folder, which has no revision 'v1'"),
        ({"robot__cameras": ["front", "front"]}, "cameras must be 1 to 4 different names"),
        ({"robot__action_normalization": "quantiles"}, "'action_normalization' expected one of ('identity', "),
        ({"data__datasets__0__cameras": {"front": "observation.images.frond"}}, f"did you mean '{FRONT}'?"),
        ({"data__datasets__0__cameras": {"wirst": WRIST}}, "no camera 'wirst': did you mean 'wrist'?"),
        ({"data__datasets__0__action": "actions"}, "did you mean 'action'?"),
        ({"data__datasets__0__episodes": [9]}, "has no episode 9: it has 0..3"),
        ({"data__datasets__0__episodes": []}, "datasets.episodes of"),
        ({"data__datasets__0__weight": -1}, "weights of a mixture must be above 0"),
        ({"data__augmentation__color_only": ["wirst"], "data__augmentation__crop_area": 0.9},
         "the policy has no camera 'wirst'"),
    ],
)  # fmt: skip
def test_invalid_recipe_settings(refused, change, message):
    refused(message, changes=change)


def test_unknown_recipe(refused):
    refused("there is no recipe 'tinny': did you mean 'tiny'", recipe="tinny")


@pytest.mark.parametrize(("missing", "message"), [("policy", "pass --policy"), ("dataset", "pass --dataset")])
def test_missing_policy_or_dataset(refused, missing, message):
    refused(message, **{missing: None})


def test_tracker_that_is_not_installed(refused):
    from accelerate.tracking import get_available_trackers

    installed = {str(tracker) for tracker in get_available_trackers()}
    absent = sorted({"trackio", "wandb", "tensorboard"} - installed)
    if not absent:
        pytest.skip("all trackers are installed")
    refused(f"{absent[0]} is not installed", changes={"run__trackers": absent[:1]})


# The dataset


def test_dataset_without_a_camera_of_the_policy(refused, other_data):
    folder = other_data("one-camera", cameras={"front": (48, 64)})
    cameras = {"robot__cameras": ["front", "wrist"]}
    refused("has no camera 'wrist', which the policy needs", dataset=folder, changes=cameras)


@pytest.mark.parametrize("column", ["state", "action"])
def test_dataset_with_another_number_of_dimensions(refused, other_data, column):
    folder = other_data(f"other-{column}", **{f"{column}_dim": 4})
    dim = {"state": 6, "action": 5}[column]
    given = {f"robot__{column}_dim": dim}
    refused(f"has 4 dimensions, the policy was made for {column}_dim={dim}", dataset=folder, changes=given)


def test_dataset_that_is_neither_a_folder_nor_on_the_hub(refused):
    refused("nobody/no-such-data", dataset="nobody/no-such-data")
    refused("no-such-folder", dataset="./no-such-folder")


def test_folder_that_is_not_a_dataset(refused, tmp_path):
    (tmp_path / "nothing").mkdir()
    refused("is not a LeRobot dataset", dataset=tmp_path / "nothing")


def test_dataset_without_frames(refused, dataset_copy):
    info = json.loads((dataset_copy / "meta" / "info.json").read_text())
    (dataset_copy / "meta" / "info.json").write_text(json.dumps(info | {"total_episodes": 0, "total_frames": 0}))
    for path in [*(dataset_copy / "data").rglob("*.parquet"), *(dataset_copy / "meta" / "episodes").rglob("*.parquet")]:
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    refused(dataset_copy.name, dataset=dataset_copy)


def rewrite(folder: Path, key: str, change: Callable[[list], list]) -> None:
    (path,) = (folder / "data").rglob("*.parquet")
    table = pq.read_table(path)
    column = pa.array(change(table[key].to_pylist()), type=table[key].type)
    pq.write_table(table.set_column(table.column_names.index(key), key, column), path)


def test_non_finite_actions(refused, dataset_copy):
    rewrite(dataset_copy, "action", lambda rows: [*rows[:13], [np.nan] * 5, *rows[14:]])
    refused("the action of dataset_copy is not finite at episode 1, frame 1", dataset=dataset_copy)


def test_truncated_images(refused, dataset_copy):
    rewrite(dataset_copy, FRONT, lambda rows: [row | {"bytes": row["bytes"][:40]} for row in rows])
    refused("the image of camera 'front' of dataset_copy at episode", "cannot be read", dataset=dataset_copy)


def test_truncated_videos(refused, video_dataset, tmp_path):
    folder = shutil.copytree(video_dataset, tmp_path / "video_dataset")
    for path in (folder / "videos").rglob("*.mp4"):
        path.write_bytes(path.read_bytes()[:200])
    refused("the image of camera", "cannot be read", dataset=folder)


def test_missing_video(refused, video_dataset, tmp_path):
    folder = shutil.copytree(video_dataset, tmp_path / "video_dataset")
    next((folder / "videos").rglob("*.mp4")).unlink()
    refused("lacks the video", dataset=folder)


def test_prompt_of_the_last_task_that_is_too_long(refused, other_data):
    folder = other_data("wordy", tasks=("push", "push the blue square, and then whatever else there is to be pushed"))
    refused("tokens, but max_prompt_length is 24: shorten the task", dataset=folder)


# The policy


def test_missing_policy_and_folders_that_are_not_policies(refused, tmp_path, policies):
    refused("nobody/no-such-policy", policy="nobody/no-such-policy")
    (tmp_path / "empty").mkdir()
    refused("is not a policy: it has no config.json", policy=tmp_path / "empty")
    copy = shutil.copytree(policies("smolvla"), tmp_path / "policy")
    (copy / "config.json").write_text("{")
    refused("config.json", policy=copy)
    (copy / "config.json").write_text('{"model_type": "bert"}')
    refused(
        "describes a model of type 'bert', expected 'rocket'; convert public checkpoints with `rocket-hf convert`",
        policy=copy,
    )


def test_truncated_incomplete_and_missing_weights(refused, tmp_path, policies):
    copy = shutil.copytree(policies("smolvla"), tmp_path / "policy")
    weights = load_file(copy / "model.safetensors")
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[:-100])
    refused("the weights /", "/model.safetensors", "cannot be read", policy=copy)
    weights.pop("policy.action_in.bias")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused("these weights do not fit the configuration: 1 missing: policy.action_in.bias", policy=copy)
    (copy / "model.safetensors").unlink()
    refused("policy", policy=copy)


def test_policy_without_processor(refused, tmp_path, policies):
    copy = shutil.copytree(policies("smolvla"), tmp_path / "policy")
    (copy / "processor_config.json").unlink()
    refused("processor_config.json", policy=copy)


def test_chunk_size_above_the_limit_of_the_policy(refused, policies):
    refused("chunk_size is 9, at most 1", policy=policies("openvla"), changes={"robot__chunk_size": 9})


# The teacher and its cache


def test_missing_teacher_and_folder_that_is_not_a_teacher(refused, tmp_path):
    refused("nobody/no-such-teacher", teacher="nobody/no-such-teacher")
    (tmp_path / "empty").mkdir()
    refused("cannot be a teacher: it has no config.json", teacher=tmp_path / "empty")


def test_truncated_and_missing_teacher_weights(refused, tmp_path, teacher):
    copy = shutil.copytree(teacher, tmp_path / "vggt")
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    refused("model.safetensors", teacher=copy)
    (copy / "model.safetensors").unlink()
    refused("has no weights", teacher=copy)


def test_feature_cache_of_another_dataset(refused, caches, other_data):
    refused(
        "holds features of image_dataset@",
        "not of other-frames",
        dataset=other_data("other-frames"),
        cache=caches("int8"),
    )


def test_feature_cache_without_a_layer(refused, caches):
    refused("has no teacher layer 1", cache=caches("int8"), changes={"alignment__teacher_layers": [1, 2, 3]})
    refused(
        "it has 2,3,4 of vggt: build another one with `rocket-hf cache build --layers 1,2,3`, or set "
        "alignment.pairs=N to choose N pairs by depth, or let `rocket-hf layers` suggest pairs",
        cache=caches("int8"), changes={"alignment__pairs": 3, "alignment__strategy": "shallow"},
    )  # fmt: skip


def test_missing_and_incomplete_feature_cache(refused, caches, tmp_path):
    refused("nowhere", cache=tmp_path / "nowhere")
    copy = shutil.copytree(caches("int8"), tmp_path / "copy")
    next(path for path in copy.rglob("*.safetensors") if "shard" in path.name or "shard" in path.parent.name).unlink()
    refused("is incomplete, 1 of 1 shards are missing", cache=copy)


def test_feature_cache_with_changed_bytes(refused, caches, tmp_path):
    copy = shutil.copytree(caches("int8"), tmp_path / "copy")
    path = next(path for path in copy.rglob("*.safetensors") if "shard" in path.name or "shard" in path.parent.name)
    content = bytearray(path.read_bytes())
    content[-len(content) // 2 :] = bytes(len(content[-len(content) // 2 :]))
    path.write_bytes(content)
    refused(path.name, cache=copy)


def test_one_feature_cache_for_two_datasets(refused, caches, image_dataset, video_dataset):
    refused("teacher.caches needs one folder per dataset: 1 for 2 datasets", cache=caches("int8"),
            more=("--dataset", video_dataset))  # fmt: skip


# The folder of the run


def test_output_folder_that_is_not_empty_or_is_a_file(refused, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    refused("is not empty: pass --resume to resume the run in it, or choose another --out", out=tmp_path / "full")
    refused("full", out=tmp_path / "full" / "notes.txt")


def test_resume_without_a_run(refused, tmp_path):
    refused("there is no run to resume in", "remove --resume to start one", more=("--resume",))


def test_same_output_folder_can_be_used_after_an_error(tiny_run, refused, tmp_path):
    refused("layer 7 does not exist", changes={"alignment__student_layers": [1, 2, 7]})
    tiny_run(tmp_path / "run", run__steps=1)


def test_policy_for_another_robot(refused, tmp_path):
    other = write_policy(tmp_path / "other", "smolvla", action_dim=3)
    given = {"robot__action_dim": 3}
    refused("has 5 dimensions, the policy was made for action_dim=3", policy=other, changes=given)
