"""Baselines of recorded actions, with values computed by hand."""

import numpy as np
import pytest
import torch

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.tiny_dataset import write_tiny_dataset
from rocket_hf.training.data.baselines import (
    HOLD_STILL,
    MEAN_ACTION,
    NEAREST_NEIGHBOR,
    ActionBaselines,
    validation_baselines,
)
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.data.mixture import EvenlySpacedOrder, FrameRanges
from rocket_hf.training.recipe import DatasetConfig
from tests.arm import ARM_JOINTS, arm_states, write_arm_dataset

CAMERAS = {"front": (16, 16)}


@pytest.fixture(scope="module")
def arm_data(tmp_path_factory):
    folder = write_arm_dataset(tmp_path_factory.mktemp("datasets") / "arm", episodes=3, frames=12, size=(16, 16))
    policy = RocketConfig(cameras=["front", "wrist"], state_dim=6, action_dim=6, chunk_size=4)
    return RobotDataset(DatasetConfig(id=str(folder)), policy)


def test_arm_holds_still_at_its_current_state(arm_data):
    baselines = ActionBaselines(arm_data, [0, 1])
    assert baselines.holds_state and baselines.hold_still_action == "the current state"
    frame = arm_data.frame_range(2).start
    state = torch.tensor(arm_states(episode=2, frames=12)[0], dtype=torch.float32)
    torch.testing.assert_close(baselines.predict(HOLD_STILL, frame, 3), state.expand(3, 6))
    assert arm_data.action_names == arm_data.state_names == ARM_JOINTS


def test_mean_action_is_that_of_the_training_episodes(arm_data):
    baselines = ActionBaselines(arm_data, [0, 1])
    mean = arm_data.actions[:24].double().mean(dim=0).float()
    torch.testing.assert_close(baselines.predict(MEAN_ACTION, 30, 2), mean.expand(2, 6))


def test_nearest_neighbor_follows_the_nearest_training_frame_and_repeats_the_last_action(arm_data):
    baselines = ActionBaselines(arm_data, [0, 1])
    states = arm_data.state.numpy().astype(np.float64)
    scale = states[:24].std(axis=0)
    for frame in range(24, 36):
        distances = [np.sum(((states[other] - states[frame]) / scale) ** 2) for other in range(24)]
        nearest = int(np.argmin(distances))
        end = 12 if nearest < 12 else 24
        expected = torch.stack([arm_data.actions[min(nearest + step, end - 1)] for step in range(4)])
        torch.testing.assert_close(baselines.predict(NEAREST_NEIGHBOR, frame, 4), expected)


def test_robot_with_relative_actions_holds_still_with_zero_actions(tmp_path):
    """The action of the generated dataset is a linear function of the goal's distance, not a target for the state."""
    folder = write_tiny_dataset(tmp_path / "relative", cameras=CAMERAS, state_dim=5, action_dim=5)
    policy = RocketConfig(cameras=["front"], state_dim=5, action_dim=5, chunk_size=4)
    baselines = ActionBaselines(RobotDataset(DatasetConfig(id=str(folder)), policy), [0, 1])
    assert baselines.hold_still_action == "the action zero"
    assert torch.equal(baselines.predict(HOLD_STILL, 0, 2), torch.zeros(2, 5))


def test_baselines_need_a_training_episode(arm_data):
    with pytest.raises(UserError, match="record a second episode"):
        ActionBaselines(arm_data, [])


def test_validation_baselines_weigh_every_action_before_the_end_of_its_episode(arm_data):
    held_out = EvenlySpacedOrder([FrameRanges([arm_data.frame_range(2)])], 12)
    errors = validation_baselines([arm_data], [[0, 1]], held_out)
    actions, states = arm_data.actions.double().numpy(), arm_data.state.double().numpy()
    mean = actions[:24].mean(axis=0)
    still, average = [], []
    for frame in range(24, 36):
        for step in range(frame, min(frame + 4, 36)):
            still.append(abs(actions[step] - states[frame]).mean())
            average.append(abs(actions[step] - mean).mean())
    assert errors == pytest.approx({HOLD_STILL: np.mean(still), MEAN_ACTION: np.mean(average)}, rel=1e-5)
