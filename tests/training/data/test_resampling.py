"""Datasets resampled to another control rate, against values computed by hand and frames that lerobot reads."""

import numpy as np
import pytest
import torch

from rocket_hf.errors import UserError
from rocket_hf.tiny import tiny_config
from rocket_hf.training.data.dimensions import VectorDescription
from rocket_hf.training.data.frame_table import MixtureEntry
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.data.resampling import action_kinds, frame_times, nearest_frames, resample_actions
from rocket_hf.training.recipe import DatasetConfig
from tests.arm import sweeping_joints, write_joint_dataset

JOINTS = ["shoulder", "elbow", "wrist"]
# Recorded rate, new rate, recorded values and, for each kind of action, the values at the new rate.
RESAMPLED = {
    "half the rate": (20, 10, [1, 2, 4, 8, 16], {
        "position": [1, 4, 16], "delta": [3, 12, 16], "velocity": [1.5, 6, 16], "discrete": [1, 4, 16]}),
    "twice the rate": (10, 20, [1, 3], {
        "position": [1, 2, 3, 3], "delta": [0.5, 0.5, 1.5, 1.5], "velocity": [1, 1, 3, 3], "discrete": [1, 1, 3, 3]}),
    "two thirds": (30, 20, [1, 2, 4], {
        "position": [1, 3], "delta": [2, 5], "velocity": [4 / 3, 10 / 3], "discrete": [1, 2]}),
    "one frame": (30, 10, [5], {"position": [5], "delta": [5], "velocity": [5], "discrete": [5]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["position", "delta", "velocity", "discrete"])
@pytest.mark.parametrize("case", RESAMPLED)
def test_actions_are_resampled_by_their_kind(case, kind):
    fps, rate, values, expected = RESAMPLED[case]
    times = frame_times(len(values), fps / rate)
    resampled = resample_actions(np.array(values, np.float32)[:, None], times, fps / rate, [kind])
    np.testing.assert_allclose(resampled[:, 0], expected[kind], rtol=1e-6)


def test_frame_of_image_and_state_is_the_nearest_one():
    assert nearest_frames(frame_times(5, 2), 5).tolist() == [0, 2, 4]
    assert nearest_frames(frame_times(2, 0.5), 2).tolist() == [0, 0, 1, 1], "the earlier of two that are equally near"
    assert nearest_frames(frame_times(8, 30 / 20), 8).tolist() == [0, 1, 3, 4, 6, 7]
    assert len(frame_times(300, 30 / 10)) == 100, "rounding errors must not add a frame"


@pytest.mark.parametrize("rate", [5, 7.5, 15, 29.97, 50])
def test_resampled_motions_move_the_robot_equally_far(rate):
    motions = np.random.default_rng(0).normal(size=(31, 3))
    resampled = resample_actions(motions, frame_times(31, 30 / rate), 30 / rate, ["delta"] * 3)
    np.testing.assert_allclose(resampled.sum(axis=0), motions.sum(axis=0), rtol=1e-6)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two episodes of 9 and 6 frames at 20 Hz."""
    episodes = [sweeping_joints(3, 9, 20), sweeping_joints(3, 6, 20, first=5)]
    return write_joint_dataset(tmp_path_factory.mktemp("datasets") / "recorded", 20, JOINTS, episodes)


@pytest.fixture(scope="module")
def policy():
    return tiny_config("smolvla", alignment=None, cameras=["front"], state_dim=3, action_dim=3, chunk_size=4)


def resampled_dataset(folder, policy, rate, in_memory=False, **changes):
    return RobotDataset(
        DatasetConfig(str(folder), **changes), policy, in_memory=in_memory, entry=MixtureEntry(2, rate, False)
    )


@pytest.mark.needs_lerobot
@pytest.mark.parametrize("in_memory", [False, True])
def test_samples_at_half_the_rate_are_every_second_frame_of_lerobots(recorded, policy, in_memory):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = resampled_dataset(recorded, policy, 10, in_memory)
    # An action that is 4 frames at 10 Hz ahead is 8 frames at 20 Hz ahead.
    reference = LeRobotDataset("local/recorded", root=recorded, delta_timestamps={"action": [0, 0.1, 0.2, 0.3]})
    assert data.fps == 10 and len(data) == 8
    assert [list(data.frame_range(episode)) for episode in (0, 1)] == [[0, 1, 2, 3, 4], [5, 6, 7]]
    frames = [0, 2, 4, 6, 8, 9, 11, 13]
    for index, frame in enumerate(frames):
        sample, expected = data.sample(index), reference[frame]
        assert sample["index"] == frame and sample["frame_index"] == expected["frame_index"]
        assert sample["episode_index"] == expected["episode_index"]
        assert torch.equal(sample["state"], expected["observation.state"])
        assert sample["images"]["front"].unique().tolist() == [frame]
        valid = ~sample["action_is_pad"]
        assert torch.equal(sample["action_is_pad"], expected["action_is_pad"])
        torch.testing.assert_close(sample["actions"][valid], expected["action"][valid])
    assert data.describe_frame(6) == "episode 1, frame 2"


def test_selected_episodes_are_resampled_and_held_in_memory(recorded, policy):
    data = resampled_dataset(recorded, policy, 40, in_memory=True, episodes=[1])
    assert len(data.frame_range(1)) == 12
    assert [data.sample(index)["images"]["front"].unique().item() for index in data.frame_range(1)] == [
        9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14,
    ]  # fmt: skip


def test_equal_rates_keep_the_recorded_frames(recorded, policy):
    data = resampled_dataset(recorded, policy, 20)
    assert data.recorded_frames.tolist() == list(range(15))


def test_actions_that_are_no_targets_need_their_kinds(policy, tmp_path):
    """Motions are detected, because interpolating them would move the robot too far."""
    motions = np.random.default_rng(0).normal(size=(8, 3))
    states = 50 + np.cumsum(motions, axis=0)
    folder = write_joint_dataset(tmp_path / "motions", 20, JOINTS, [(states, motions)])
    message = (
        f"the actions of {folder} are not targets for its state, so resampling needs to know what they are: set "
        "data.datasets.2.action_kinds to one of position, delta, velocity, discrete for each of its 3 dimensions "
        "(shoulder, elbow, wrist), or to a list with one kind for all of them"
    )
    with pytest.raises(UserError) as caught:
        resampled_dataset(folder, policy, 10)
    assert str(caught.value) == message
    data = resampled_dataset(folder, policy, 10, action_kinds=["delta", "delta", "discrete"])
    np.testing.assert_allclose(data.actions[:, :2], motions[0::2, :2] + motions[1::2, :2], rtol=1e-5)
    np.testing.assert_allclose(data.actions[:, 2], motions[0::2, 2], rtol=1e-6)


def test_impossible_kinds_are_refused():
    arm = VectorDescription(3, None)
    assert action_kinds(["delta"], arm, False, "arm", 0) == ["delta"] * 3
    assert action_kinds(None, arm, True, "arm", 0) == ["position"] * 3
    with pytest.raises(UserError, match=r"data.datasets.1.action_kinds: there is no kind 'deltas'"):
        action_kinds(["deltas"], arm, True, "arm", 1)
    with pytest.raises(UserError, match="has 2 kinds, but the actions of arm have 3 dimensions: give one kind"):
        action_kinds(["delta", "position"], arm, True, "arm", 0)
