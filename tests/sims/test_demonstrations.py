"""Recordings, read back by lerobot; what interruptions leave; what is refused.

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
from rocket_hf.sims.dataset_writer import picture_encoder
from rocket_hf.sims.demonstrations import record
from rocket_hf.sims.expert import NEXT_SEED, demonstrate, replay, solve
from rocket_hf.sims.interruption import SIGNALS, Interruption
from rocket_hf.sims.rgbd import RgbdFrames
from rocket_hf.tiny import tiny_config
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.recipe import DatasetConfig

from .conftest import TASKS

pytestmark = pytest.mark.needs_lerobot


def numbers(folder):
    """All columns that are no pictures, row by row."""
    return [row for path in sorted(folder.glob("data/*/*.parquet")) for row in pq.read_table(path).to_pylist()]


def pictures(folder):
    frames = RgbdFrames(folder)
    return [(frames[index].images, frames[index].depth) for index in range(len(frames))]


def same_recording(first, second):
    assert numbers(first) == numbers(second)
    for (images, depth), (other_images, other_depth) in zip(pictures(first), pictures(second), strict=True):
        assert torch.equal(images, other_images) and torch.equal(depth, other_depth)


# What is recorded


def test_lerobot_reads_what_the_expert_did(recorded, make):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder, said = recorded
    dataset = LeRobotDataset("local/demonstrations", root=folder, video_backend="pyav", depth_output_unit="m")
    assert (said.episodes, said.frames) == (dataset.num_episodes, len(dataset)) and dataset.num_episodes == 4
    index = 0
    for task in TASKS:
        environment = make(task)
        for seed in (0, 1):
            for frame in replay(environment, seed, solve(environment, seed), depth=True):
                item = dataset[index]
                assert item["task"] == environment.instruction
                for key in ("observation.state", "action", "camera.corner2.pose", "camera.gripperPOV.intrinsics"):
                    np.testing.assert_array_equal(item[key], frame[key])
                assert bool(item["next.success"]) == bool(frame["next.success"]) and int(item["seed"]) == seed
                for camera in environment.cameras:
                    picture = item[f"observation.images.{camera}"].permute(1, 2, 0).numpy() * 255
                    drawn = frame[f"observation.images.{camera}"].astype(np.float32)
                    assert np.sqrt(np.mean((picture - drawn) ** 2)) < 12  # the video is lossy
                    depth = frame[f"observation.images.{camera}_depth"].clip(0.02, 10)
                    read = item[f"observation.images.{camera}_depth"].permute(1, 2, 0).numpy()
                    np.testing.assert_allclose(read, depth, rtol=1e-3)
                index += 1
    assert index == len(dataset)


def test_an_episode_ends_with_its_success_and_actions_are_in_range(recorded):
    rows = numbers(recorded[0])
    ends = [row["episode_index"] != after["episode_index"] for row, after in itertools.pairwise(rows)] + [True]
    assert [row["next.success"] for row in rows] == ends
    assert max(abs(value) for row in rows for value in row["action"]) <= 1


def test_a_policy_trains_on_it_and_depth_is_none_of_its_cameras(recorded):
    config = tiny_config(cameras=["corner2", "gripperPOV"], state_dim=4, action_dim=4)
    data = RobotDataset(DatasetConfig(id=str(recorded[0])), config)
    sample = data.sample(3)
    assert {camera: picture.shape for camera, picture in sample["images"].items()} == {
        "corner2": (3, 32, 32),
        "gripperPOV": (3, 32, 32),
    }
    assert sample["task"] == "press the handle down from the front"
    assert torch.equal(sample["images"]["corner2"], RgbdFrames(recorded[0])[3].images[0])


def test_frames_with_depth_are_those_of_lerobot_in_any_order(recorded):
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


def test_without_depth_there_is_none(tmp_path):
    record(tmp_path / "plain", "metaworld", ["handle-press-v3"], 1, image_size=32, workers=1)
    assert not [name for name in numbers(tmp_path / "plain")[0] if name.startswith("camera.")]
    with pytest.raises(ValueError, match="holds no depth: record it with `rocket-hf simulate"):
        RgbdFrames(tmp_path / "plain")


def test_the_number_of_workers_changes_nothing(recorded, tmp_path):
    said = record(tmp_path / "by-two", "metaworld", TASKS, 2, image_size=32, depth=True, workers=2)
    assert said == recorded[1]
    same_recording(tmp_path / "by-two", recorded[0])


ENCODE_OFTEN = """
import io, json, sys
from fractions import Fraction
import av, numpy as np
from PIL import Image

pictures, encoder, chance, seen = np.load(sys.argv[1]), json.loads(sys.argv[2]), np.random.default_rng(0), set()
for _ in range(60):
    sizes = [*chance.integers(8, 2_000, 300), *chance.integers(500, 150_000, 60)]
    litter = [chance.integers(-40, 40, size, np.int16) for size in sizes]
    while litter:  # in any order, so that what an encoder gets of it is not clean
        litter.pop(chance.integers(len(litter)))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as video:
        stream = video.add_stream(encoder["codec"], 80, options=encoder["options"])
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], encoder["pix_fmt"]
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(Image.fromarray(picture))
            frame.pts, frame.time_base = number, Fraction(1, 80)
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
    seen.add(file.getvalue())
print(len(seen))
"""


def test_the_same_pictures_give_the_same_video_whatever_was_in_memory(make, tmp_path):
    environment = make("handle-press-v3")
    frames = replay(environment, 0, solve(environment, 0), depth=False)
    np.save(tmp_path / "pictures.npy", [frame["observation.images.corner2"] for frame in frames])
    by = picture_encoder()
    encoder = {"codec": by.vcodec, "pix_fmt": by.pix_fmt, "options": by.get_codec_options(1, as_strings=True)}
    command = [sys.executable, "-c", ENCODE_OFTEN, tmp_path / "pictures.npy", json.dumps(encoder)]
    used_again = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(10**9)}  # freed memory is, as it is in a long run
    assert subprocess.run(command, capture_output=True, text=True, env=used_again).stdout.strip() == "1"


# Starts that the expert fails


def test_a_start_that_the_expert_fails_is_dropped_and_counted(make):
    environment = make("handle-press-v3", max_steps=38)
    assert not solve(environment, 0) and solve(environment, NEXT_SEED)
    demonstration = demonstrate(environment, 0, depth=False)
    assert (demonstration.seed, demonstration.dropped) == (NEXT_SEED, 1)


def test_a_task_that_the_expert_never_solves_is_told(make):
    with pytest.raises(
        ValueError, match=r"expert of reach-v3 failed 50 starts within 2 steps each: leave the task out"
    ):
        demonstrate(make("reach-v3", max_steps=2), 0, depth=False)


# Interruptions


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_wait_until_what_is_written_is_written(number):
    interruption, written = Interruption(), []

    def write(how):
        with interruption.listen(), how:
            signal.raise_signal(number)
            written.append("to the end")

    with pytest.raises(KeyboardInterrupt):
        write(interruption.shield())
    with pytest.raises(KeyboardInterrupt):
        write(contextlib.nullcontext())
    assert written == ["to the end"]


def test_an_interrupted_recording_is_readable_and_goes_on(tmp_path, recorded):
    folder = tmp_path / "demonstrations"

    def interrupt_after_an_episode():
        while not list(folder.glob("videos/*/*/*.mp4")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    arguments = (folder, "metaworld", TASKS, 2, 32, True, 1)
    before = [signal.getsignal(each) for each in SIGNALS]
    threading.Thread(target=interrupt_after_an_episode).start()
    with pytest.raises(KeyboardInterrupt):
        record(*arguments)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    finished = RgbdFrames(folder)
    assert 0 < len(set(finished.episodes.tolist())) < 4
    assert finished[len(finished) - 1].images.any()
    assert record(*arguments) == recorded[1]
    same_recording(folder, recorded[0])


def test_a_finished_recording_is_left_alone(recorded):
    folder, said = recorded
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert record(folder, "metaworld", TASKS, 2, image_size=32, depth=True, workers=1) == said
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_recording_that_was_cut_off_while_it_was_written_is_refused(recorded, tmp_path):
    folder = shutil.copytree(recorded[0], tmp_path / "killed")
    said = json.loads((folder / "meta" / "simulation.json").read_text())
    said["progress"]["episodes"] = 1  # as the file was written last
    (folder / "meta" / "simulation.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="was cut off while it was written: remove it and record again"):
        record(folder, "metaworld", TASKS, 2, image_size=32, depth=True, workers=1)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tasks": ["reach-v2"]}, "metaworld has no task 'reach-v2': did you mean 'reach-v3'"),
        ({"tasks": []}, "tasks must be at least 1, got 0"),
        ({"tasks": ["reach-v3", "reach-v3"]}, "a task is named twice: reach-v3, reach-v3"),
        ({"episodes": 0}, "episodes must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"image_size": 33}, "the image size must be even and at least 16, for the video's sake, got 33"),
    ],
)
def test_what_cannot_be_recorded_is_told_before_anything_is_written(arguments, sentence, tmp_path):
    usual = {"tasks": ["reach-v3"], "episodes": 1, "image_size": 32, "workers": 1}
    with pytest.raises(ValueError, match=sentence):
        record(tmp_path / "new", "metaworld", **(usual | arguments))
    assert not (tmp_path / "new").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="exists and is no recording of demonstrations: name another folder"):
        record(tmp_path, "metaworld", ["reach-v3"], 1)


def test_a_recording_of_something_else_is_refused(recorded):
    with pytest.raises(ValueError, match="holds demonstrations with episodes 2, not 3: name another folder"):
        record(recorded[0], "metaworld", TASKS, 3, image_size=32, depth=True)
    with pytest.raises(ValueError, match="with tasks handle-press-v3,reach-v3, not reach-v3: name another folder"):
        record(recorded[0], "metaworld", ["reach-v3"], 2, image_size=32, depth=True)


# The command


def test_the_command_records_and_says_what(tmp_path, capsys):
    folder = str(tmp_path / "new")
    arguments = ["simulate", "metaworld", "--tasks", "handle-press-v3", "--episodes", "1", "--out", folder]
    assert main([*arguments, "--workers", "1", "--image-size", "16", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert "handle-press-v3         1      26        0" in printed
    assert f"next: rocket-hf adapt POLICY --dataset {folder}" in printed


def test_the_command_tells_a_mistyped_task_in_one_line(tmp_path, capsys):
    assert main(["simulate", "metaworld", "--tasks", "eazy", "--episodes", "1", "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.startswith("rocket-hf simulate: metaworld has no task 'eazy': ")
