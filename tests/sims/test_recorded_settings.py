"""Recordings of environments with settings: their names, lossless images of geometry, and training data from them.

python -m pytest tests/sims/test_recorded_settings.py
"""

import json

import numpy as np
import pytest

from rocket_hf.commands import main
from rocket_hf.errors import UserError
from rocket_hf.rgbd_dataset import RgbdFrames
from rocket_hf.sims.demonstrations import record
from rocket_hf.sims.expert import replay, solve
from rocket_hf.sims.recording import read_recording
from rocket_hf.sims.suites import make_environment
from rocket_hf.tiny import tiny_config
from rocket_hf.training.data.dataset_statistics import compute_dataset_statistics
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.recipe import DatasetConfig

pytestmark = pytest.mark.needs_lerobot

NAME = "metaworld:heights=0..0.12,camera=random(20,10,0.1),cameras=corner2,state=object,inputs=xyz+rays+depth"
SAME_NAME = "metaworld:inputs=depth+rays+xyz,cameras=corner2,state=object,camera=random(20,10,0.10),heights=0..0.120"
TASK = "button-press-v3"


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("varied") / "demonstrations"
    record(folder, SAME_NAME, [TASK], 2, image_size=32, depth=True, workers=1)
    return folder


@pytest.fixture(scope="module")
def replayed():
    """Frames of the recorded episodes, from the simulator."""
    environment = make_environment(NAME, TASK, 32)
    frames = [frame for seed in (0, 1) for frame in replay(environment, seed, solve(environment, seed), depth=True)]
    environment.close()
    return frames


def test_recording_stores_the_environment_name_and_resumes_with_an_equal_one(varied):
    stored = json.loads((varied / "meta" / "simulation.json").read_text())
    assert stored["plan"]["suite"] == NAME
    before = {path: path.read_bytes() for path in varied.rglob("*") if path.is_file()}
    assert record(varied, NAME, [TASK], 2, image_size=32, depth=True, workers=1).episodes == 2
    assert {path: path.read_bytes() for path in varied.rglob("*") if path.is_file()} == before
    with pytest.raises(
        UserError, match=r"contains a recording with suite metaworld:heights=0\.\.0\.12,.*not metaworld"
    ):
        record(varied, "metaworld", [TASK], 2, image_size=32, depth=True, workers=1)
    assert read_recording(varied)["plan"]["tasks"] == [TASK]


def test_recorded_images_of_geometry_are_lossless_for_training(varied, replayed):
    cameras = ["corner2_xyz", "corner2_ray_direction", "corner2_ray_moment", "corner2_gray_depth"]
    data = RobotDataset(DatasetConfig(id=str(varied)), tiny_config(cameras=cameras, state_dim=7, action_dim=4))
    assert len(data) == len(replayed)
    for index in (0, 7, len(replayed) - 1):
        sample, frame = data.sample(index), replayed[index]
        for camera in cameras:
            image = sample["images"][camera].permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(image, frame[f"observation.images.{camera}"])
        np.testing.assert_array_equal(sample["state"], frame["observation.state"])


def test_images_of_geometry_do_not_replace_recorded_depth(varied, replayed):
    frames = RgbdFrames(varied)
    assert frames.cameras == ("corner2",)
    expected = replayed[5]["observation.images.corner2_depth"][..., 0].clip(0.02, 10)
    np.testing.assert_allclose(frames[5].depth[0].numpy(), expected, rtol=1e-3)
    poses = frames.poses[:, 0].numpy()
    starts = np.flatnonzero(np.diff(frames.episodes, prepend=-1))
    assert (poses == poses[starts][np.searchsorted(starts, np.arange(len(poses)), side="right") - 1]).all()
    assert np.linalg.norm(poses[starts[0]][:3, 3] - poses[starts[1]][:3, 3]) > 0.01, "the camera moves between episodes"


def test_constant_state_can_be_normalized(tmp_path):
    record(tmp_path / "data", "metaworld:cameras=corner2,state=none", [TASK], 1, image_size=32, workers=1)
    config = tiny_config(cameras=["corner2"], state_dim=4, action_dim=4)
    data = RobotDataset(DatasetConfig(id=str(tmp_path / "data")), config)
    assert not data.state.any()
    state = compute_dataset_statistics([data])["state"]
    assert state["mean"] == [0, 0, 0, 0] and min(state["std"]) > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "metaworld:heights=0.12..0",
            "rocket-hf simulate: the range heights=0.12..0 is reversed: write heights=0..0.12",
        ),
        ("libero:inputs=xyz", "rocket-hf simulate: libero has no setting 'inputs': only metaworld has settings"),
        ("vizdoom:state=none", "rocket-hf simulate: vizdoom has no setting 'state': only metaworld has settings"),
    ],
)
def test_command_rejects_wrong_settings_in_one_sentence(name, message, tmp_path, capsys):
    assert main(["simulate", name, "--tasks", TASK, "--episodes", "1", "--out", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and len(error.splitlines()) == 1
    assert not (tmp_path / "data").exists()
