"""Recording of demonstrations: content as read by lerobot, interruptions and error messages.

python -m pytest tests/sims/test_demonstrations.py
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rocket_hf.commands import main
from rocket_hf.errors import UserError
from rocket_hf.rgbd_dataset import RgbdFrames
from rocket_hf.sims.dataset_writer import image_encoder
from rocket_hf.sims.demonstrations import record
from rocket_hf.sims.expert import ATTEMPT_SEED_STEP, demonstrate, replay, solve
from rocket_hf.sims.interruption import SIGNALS, Interruption
from rocket_hf.tiny import tiny_config
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.recipe import DatasetConfig

from .conftest import TASKS

pytestmark = pytest.mark.needs_lerobot


def read_rows(folder):
    """Return all columns that are not images, row by row."""
    return [row for path in sorted(folder.glob("data/*/*.parquet")) for row in pq.read_table(path).to_pylist()]


def read_images(folder):
    frames = RgbdFrames(folder)
    return [(frames[index].images, frames[index].depth) for index in range(len(frames))]


def assert_same_recording(first, second):
    assert read_rows(first) == read_rows(second)
    for (images, depth), (other_images, other_depth) in zip(read_images(first), read_images(second), strict=True):
        assert torch.equal(images, other_images) and torch.equal(depth, other_depth)


# Content


def test_lerobot_reads_the_experts_episodes(recorded, make_environment):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder, progress = recorded
    dataset = LeRobotDataset("local/demonstrations", root=folder, video_backend="pyav", depth_output_unit="m")
    assert (progress.episodes, progress.frames) == (dataset.num_episodes, len(dataset)) and dataset.num_episodes == 4
    index = 0
    for task in TASKS:
        environment = make_environment(task)
        for seed in (0, 1):
            for frame in replay(environment, seed, solve(environment, seed), depth=True):
                item = dataset[index]
                assert item["task"] == environment.instruction
                for key in ("observation.state", "action", "camera.corner2.pose", "camera.gripperPOV.intrinsics"):
                    np.testing.assert_array_equal(item[key], frame[key])
                assert bool(item["next.success"]) == bool(frame["next.success"]) and int(item["seed"]) == seed
                for camera in environment.cameras:
                    image = item[f"observation.images.{camera}"].permute(1, 2, 0).numpy() * 255
                    rendered = frame[f"observation.images.{camera}"].astype(np.float32)
                    assert np.sqrt(np.mean((image - rendered) ** 2)) < 12  # the video is lossy
                    depth = frame[f"observation.images.{camera}_depth"].clip(0.02, 10)
                    read_depth = item[f"observation.images.{camera}_depth"].permute(1, 2, 0).numpy()
                    np.testing.assert_allclose(read_depth, depth, rtol=1e-3)
                index += 1
    assert index == len(dataset)


def test_episode_ends_with_success_and_actions_are_in_range(recorded):
    rows = read_rows(recorded[0])
    is_last = [row["episode_index"] != following["episode_index"] for row, following in itertools.pairwise(rows)] + [
        True
    ]
    assert [row["next.success"] for row in rows] == is_last
    assert max(abs(value) for row in rows for value in row["action"]) <= 1


def test_training_data_has_no_depth_cameras(recorded):
    config = tiny_config(cameras=["corner2", "gripperPOV"], state_dim=4, action_dim=4)
    data = RobotDataset(DatasetConfig(id=str(recorded[0])), config)
    sample = data.sample(3)
    assert {camera: image.shape for camera, image in sample["images"].items()} == {
        "corner2": (3, 32, 32),
        "gripperPOV": (3, 32, 32),
    }
    assert sample["task"] == "press the handle down from the front"
    assert torch.equal(sample["images"]["corner2"], RgbdFrames(recorded[0])[3].images[0])


def test_rgbd_frames_equal_lerobots_in_any_order(recorded):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/demonstrations", root=recorded[0], video_backend="pyav", depth_output_unit="m")
    frames = RgbdFrames(recorded[0])
    assert len(frames) == len(dataset) and frames.cameras == ("corner2", "gripperPOV")
    for index in (5, 6, 30, 2, 2, len(frames) - 1, 0):
        frame, item = frames[index], dataset[index]
        assert (frame.task, frame.episode) == (item["task"], int(item["episode_index"]))
        assert (frames.tasks[index], int(frames.episodes[index])) == (frame.task, frame.episode)
        for number, camera in enumerate(frames.cameras):
            assert torch.equal(frame.images[number].float() / 255, item[f"observation.images.{camera}"])
            torch.testing.assert_close(frame.depth[number], item[f"observation.images.{camera}_depth"][0])
            assert torch.equal(frame.poses[number].flatten(), item[f"camera.{camera}.pose"])
            assert torch.equal(frame.intrinsics[number].flatten(), item[f"camera.{camera}.intrinsics"])
    with pytest.raises(IndexError):
        frames[len(frames)]


def test_recording_without_depth_raises_when_depth_is_read(tmp_path):
    record(tmp_path / "plain", "metaworld", ["handle-press-v3"], 1, image_size=32, workers=1)
    assert not [name for name in read_rows(tmp_path / "plain")[0] if name.startswith("camera.")]
    with pytest.raises(UserError, match="contains no depth: record it with `rocket-hf simulate"):
        RgbdFrames(tmp_path / "plain")


def test_recording_does_not_depend_on_number_of_workers(recorded, tmp_path):
    progress = record(tmp_path / "by-two", "metaworld", TASKS, 2, image_size=32, depth=True, workers=2)
    assert progress == recorded[1]
    assert_same_recording(tmp_path / "by-two", recorded[0])


ENCODE_REPEATEDLY = """
import io, json, sys
from fractions import Fraction
import av, numpy as np
from PIL import Image

images, encoder, rng, videos = np.load(sys.argv[1]), json.loads(sys.argv[2]), np.random.default_rng(0), set()
for _ in range(60):
    sizes = [*rng.integers(8, 2_000, 300), *rng.integers(500, 150_000, 60)]
    blocks = [rng.integers(-40, 40, size, np.int16) for size in sizes]
    while blocks:  # freed in random order, so that the encoder's memory has arbitrary content
        blocks.pop(rng.integers(len(blocks)))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as video:
        stream = video.add_stream(encoder["codec"], 80, options=encoder["options"])
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], encoder["pix_fmt"]
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_image(Image.fromarray(image))
            frame.pts, frame.time_base = number, Fraction(1, 80)
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
    videos.add(file.getvalue())
print(len(videos))
"""


def test_video_does_not_depend_on_uninitialized_memory(make_environment, tmp_path):
    environment = make_environment("handle-press-v3")
    frames = replay(environment, 0, solve(environment, 0), depth=False)
    np.save(tmp_path / "images.npy", [frame["observation.images.corner2"] for frame in frames])
    config = image_encoder()
    encoder = {
        "codec": config.vcodec,
        "pix_fmt": config.pix_fmt,
        "options": config.get_codec_options(1, as_strings=True),
    }
    command = [sys.executable, "-c", ENCODE_REPEATEDLY, tmp_path / "images.npy", json.dumps(encoder)]
    reuse_memory = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(10**9)}  # as in a long run
    assert subprocess.run(command, capture_output=True, text=True, env=reuse_memory).stdout.strip() == "1"


# Failed attempts


def test_failed_attempt_is_counted_and_next_seed_is_used(make_environment):
    environment = make_environment("handle-press-v3", max_steps=38)
    assert not solve(environment, 0) and solve(environment, ATTEMPT_SEED_STEP)
    demonstration = demonstrate(environment, 0, depth=False)
    assert (demonstration.seed, demonstration.failed_attempts) == (ATTEMPT_SEED_STEP, 1)


def test_task_that_expert_never_solves_raises(make_environment):
    with pytest.raises(
        UserError, match=r"expert of reach-v3 failed in 50 attempts of 2 steps: remove the task from --tasks"
    ):
        demonstrate(make_environment("reach-v3", max_steps=2), 0, depth=False)


# Interruptions


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_is_delayed_until_write_is_complete(number):
    interruption, written = Interruption(), []

    def write(context):
        with interruption.listen(), context:
            signal.raise_signal(number)
            written.append("complete")

    with pytest.raises(KeyboardInterrupt):
        write(interruption.shield())
    with pytest.raises(KeyboardInterrupt):
        write(contextlib.nullcontext())
    assert written == ["complete"]


def test_interrupted_recording_is_readable_and_resumes(tmp_path, recorded):
    folder = tmp_path / "demonstrations"

    def interrupt_after_first_episode():
        while not list(folder.glob("videos/*/*/*.mp4")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    arguments = (folder, "metaworld", TASKS, 2, 32, True, 1)
    before = [signal.getsignal(each) for each in SIGNALS]
    threading.Thread(target=interrupt_after_first_episode).start()
    with pytest.raises(KeyboardInterrupt):
        record(*arguments)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    finished = RgbdFrames(folder)
    assert 0 < len(set(finished.episodes.tolist())) < 4
    assert finished[len(finished) - 1].images.any()
    assert record(*arguments) == recorded[1]
    assert_same_recording(folder, recorded[0])


def test_recording_again_after_completion_changes_no_file(recorded):
    folder, progress = recorded
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert record(folder, "metaworld", TASKS, 2, image_size=32, depth=True, workers=1) == progress
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_recording_killed_during_write_raises(recorded, tmp_path):
    folder = shutil.copytree(recorded[0], tmp_path / "killed")
    recording = json.loads((folder / "meta" / "simulation.json").read_text())
    recording["progress"]["episodes"] = 1  # the progress before the last write
    (folder / "meta" / "simulation.json").write_text(json.dumps(recording))
    with pytest.raises(UserError, match="was killed during a write: remove it and record again"):
        record(folder, "metaworld", TASKS, 2, image_size=32, depth=True, workers=1)


# Invalid input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["reach-v2"]}, "metaworld has no task 'reach-v2': did you mean 'reach-v3'"),
        ({"tasks": []}, "tasks must be at least 1, got 0"),
        ({"tasks": ["reach-v3", "reach-v3"]}, "a task is named more than once: reach-v3, reach-v3"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        (
            {"image_size": 33},
            "the image size must be even and at least 16, .*: got 33",
        ),
        ({"image_size": 0}, "the image size must be even and at least 16, .*: got 0"),
        ({"first_seed": -1}, "the seed of the first episode must be between 0 and 4245967295, got -1"),
        ({"first_seed": 2**32 - 1}, "the seed of the first episode must be between 0 and 4245967295, got 4294967295"),
    ],
)
def test_invalid_plan_raises_before_anything_is_written(arguments, message, tmp_path):
    valid = {"tasks": ["reach-v3"], "episodes": 1, "image_size": 32, "workers": 1}
    with pytest.raises(UserError, match=message):
        record(tmp_path / "new", "metaworld", **(valid | arguments))
    assert not (tmp_path / "new").exists()


def test_folder_with_other_content_raises(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(
        UserError,
        match=r"is not a recording of .*: it has no meta/simulation.json. Choose another folder",
    ):
        record(tmp_path, "metaworld", ["reach-v3"], 1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_recording_with_other_plan_raises(recorded):
    with pytest.raises(UserError, match="contains a recording with episodes 2, not 3: choose another folder"):
        record(recorded[0], "metaworld", TASKS, 3, image_size=32, depth=True)
    with pytest.raises(UserError, match="with tasks handle-press-v3,reach-v3, not reach-v3: choose another folder"):
        record(recorded[0], "metaworld", ["reach-v3"], 2, image_size=32, depth=True)


# The command


def test_command_records_and_prints_table(tmp_path, capsys):
    folder = str(tmp_path / "new")
    arguments = ["simulate", "metaworld", "--tasks", "handle-press-v3", "--episodes", "1", "--out", folder]
    assert main([*arguments, "--workers", "1", "--image-size", "16", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert "handle-press-v3         1      26                0" in printed
    assert f"next       rocket-hf adapt POLICY --dataset {folder}" in printed


def test_command_prints_suggestion_for_mistyped_task(tmp_path, capsys):
    assert main(["simulate", "metaworld", "--tasks", "eazy", "--episodes", "1", "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith("rocket-hf simulate: metaworld has no task 'eazy': ")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--image-size", "0"], "the image size must be even and at least 16"),
        (["--seed", "-1"], "the seed of the first episode must be between 0 and"),
    ],
)
def test_command_rejects_impossible_numbers_in_one_sentence(option, message, tmp_path, capsys):
    words = ["simulate", "metaworld", "--tasks", "reach-v3", "--episodes", "1", "--out", str(tmp_path / "new")]
    assert main([*words, *option]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
