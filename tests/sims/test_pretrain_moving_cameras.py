"""`rocket-hf pretrain-teacher` on demonstrations whose third-person camera has a random pose in each episode."""

import contextlib
import io
import json
import math
import shlex

import pytest
import torch

from rocket_hf.commands import main
from rocket_hf.commands.pretrain_teacher import summarize_report
from rocket_hf.rgbd_dataset import RgbdFrames
from rocket_hf.sims.demonstrations import record
from rocket_hf.sims.metaworld_tasks import INSTRUCTIONS
from rocket_hf.teachers.load import load_teacher
from rocket_hf.teachers.pretraining.card import render_card
from rocket_hf.teachers.pretraining.make_teacher import make_teacher
from rocket_hf.teachers.pretraining.pretrain import PretrainingSettings
from rocket_hf.teachers.pretraining.scenes import read_scenes

ENVIRONMENT = "metaworld:camera=random(20,10,0.1)"
TASKS = ("handle-press-v3", "reach-v3")
HELD_OUT = INSTRUCTIONS["reach-v3"]


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moving") / "rgbd"
    record(folder, ENVIRONMENT, TASKS, 2, image_size=32, depth=True, workers=1)
    return folder


def test_teacher_is_trained_and_its_card_has_the_environment(moving, tmp_path):
    words = ["pretrain-teacher", str(moving), "--held-out", HELD_OUT, "--steps", "2", "--batch-size", "2"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*words, "--every", "20", "--out", str(tmp_path / "teacher")]) == 0
    report = json.loads((tmp_path / "teacher" / "report.json").read_text())
    assert math.isfinite(report["camera"]["translation_meters"]) and report["data"]["cameras"] == [
        "corner2",
        "gripperPOV",
    ]
    command = f"    rocket-hf simulate {shlex.quote(ENVIRONMENT)} --tasks handle-press-v3 reach-v3 --episodes 2"
    assert command in (tmp_path / "teacher" / "README.md").read_text()
    assert (tmp_path / "teacher" / "model.safetensors").stat().st_size < 4e6
    assert load_teacher(str(tmp_path / "teacher")).card.name == "teacher"


def test_scenes_have_the_pose_of_their_episode(moving):
    """The camera stands still within an episode, and elsewhere in every other one: its pose depends on the task and on
    the episode's seed."""
    frames = RgbdFrames(moving)
    scenes = read_scenes(frames, stride=10)
    episodes = torch.from_numpy(frames.episodes.copy())[::10]
    places = scenes.poses[:, 0, :3, 3]  # of corner2
    for episode in episodes.unique():
        assert (places[episodes == episode] - places[episodes == episode][0]).abs().max() < 1e-5
    firsts = torch.stack([places[episodes == episode][0] for episode in range(4)])
    assert torch.pdist(firsts).min() > 0.01


def test_scenes_of_one_camera_have_a_report_without_poses(moving):
    scenes = read_scenes(RgbdFrames(moving), stride=20)
    corner = scenes.select(torch.arange(len(scenes)), torch.zeros(len(scenes), 1, dtype=torch.long))
    _, report = make_teacher(corner, ["corner2"], [HELD_OUT], PretrainingSettings(steps=1, batch_size=2))
    assert report["camera"] == {} and "nan" not in json.dumps(report).lower()
    assert "one camera, so no poses between cameras" in render_card(report | {"commands": []})
    assert not [line for line in summarize_report(report) if line.startswith("cameras")]
