"""Tests of camera geometry and losses in the pretraining of a teacher.

Rotations are compared with scipy's, and gradients with finite differences.
"""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from rocket_hf.teachers.pretraining.geometry import (
    angles_of_view,
    quaternions,
    relative_poses,
    rotation_angles,
)
from rocket_hf.teachers.pretraining.heads import GeometryPrediction
from rocket_hf.teachers.pretraining.losses import GeometryTargets, geometry_losses, weighted_sum

from .synthetic_scenes import random_poses, seeded

# Cameras


def test_quaternions_equal_scipy():
    near_half_turns = Rotation.from_rotvec([[math.pi - 1e-4, 0, 0], [0, 3.14, 0], [0, 0.01, -3.14], [0, 0, 0]])
    for rotations in (Rotation.random(200, random_state=1), near_half_turns):
        found = quaternions(torch.from_numpy(rotations.as_matrix()))
        real_last = torch.from_numpy(rotations.as_quat(canonical=True))
        torch.testing.assert_close(found, real_last.roll(1, dims=-1))


def test_rotation_angles_equal_scipy():
    first, second = (Rotation.random(50, random_state=seed) for seed in (1, 2))
    found = rotation_angles(*(quaternions(torch.from_numpy(each.as_matrix())) for each in (first, second)))
    target = torch.from_numpy((first.inv() * second).magnitude()).rad2deg()
    torch.testing.assert_close(found, target)


def test_relative_pose_equals_path_through_world_coordinates():
    poses = random_poses(2, 3)
    point = torch.tensor([0.1, -0.2, 1.5, 1])
    through_world = torch.linalg.solve(poses[:, :1], poses @ point[:, None])
    torch.testing.assert_close(relative_poses(poses) @ point[:, None], through_world)
    torch.testing.assert_close(relative_poses(poses)[:, 0], torch.eye(4).expand(2, 4, 4), atol=1e-5, rtol=0)


def test_focal_length_of_half_the_side_gives_right_angle():
    intrinsics = torch.tensor([[64.0, 0, 63.5], [0, 64, 63.5], [0, 0, 1]])
    assert angles_of_view(intrinsics, 128).item() == pytest.approx(math.pi / 2)


# Losses


def make_prediction(log_depth: Tensor, quaternion: Tensor | None = None) -> GeometryPrediction:
    scenes, frames = log_depth.shape[:2]
    identity = torch.tensor([1.0, 0, 0, 0]).expand(scenes, frames, 4)
    return GeometryPrediction(
        log_depth,
        torch.zeros(scenes, frames, 3),
        identity if quaternion is None else quaternion.expand(scenes, frames, 4),
        torch.ones(scenes, frames),
    )


def make_targets(depth: Tensor) -> GeometryTargets:
    found = make_prediction(depth.log())
    return GeometryTargets(depth, found.translations, found.quaternions, found.angles_of_view)


def test_doubled_depth_has_loss_log_2_and_no_gradient_loss():
    depth = 0.5 + torch.rand(2, 2, 16, 16, generator=seeded())
    losses = geometry_losses(make_prediction((2 * depth).log()), make_targets(depth))
    assert losses["depth"].item() == pytest.approx(math.log(2), rel=1e-5)
    assert losses["gradient"].item() == pytest.approx(0, abs=1e-6)


def test_gradient_loss_of_step_counts_pixel_pairs_across_it():
    """A step of 1 in the middle of 16 columns separates 1 of 15 neighbors, 2 of 14, 4 of 12 and 8 of 8 pixel pairs."""
    found = torch.zeros(1, 1, 16, 16)
    found[..., 8:] = 1
    losses = geometry_losses(make_prediction(found), make_targets(torch.ones(1, 1, 16, 16)))
    crossed = (1 / 15 + 2 / 14 + 4 / 12 + 8 / 8) / 4
    assert losses["gradient"].item() == pytest.approx(
        crossed / 2
    )  # the mean over rows, which cross the step, and columns, which do not


def test_pixels_of_the_sky_have_no_gradient():
    depth = torch.ones(1, 1, 16, 16)
    depth[..., :5] = 100
    found = torch.randn(1, 1, 16, 16, generator=seeded()).requires_grad_()
    losses = geometry_losses(make_prediction(found), make_targets(depth))
    (gradient,) = torch.autograd.grad(losses["depth"] + losses["gradient"], found)
    assert not gradient[..., :5].any() and gradient[..., 5:].all()


def test_opposite_quaternions_are_same_rotation():
    depth = torch.ones(1, 2, 16, 16)
    opposite = geometry_losses(make_prediction(depth.log(), torch.tensor([-1.0, 0, 0, 0])), make_targets(depth))
    half_turn = geometry_losses(make_prediction(depth.log(), torch.tensor([0.0, 0, 1, 0])), make_targets(depth))
    assert opposite["rotation"].item() == 0
    assert half_turn["rotation"].item() == pytest.approx(math.sqrt(2))


def test_single_camera_has_no_pose_loss():
    depth = torch.ones(2, 1, 16, 16)
    found = make_prediction(depth.log())
    found.translations = found.translations + 1
    losses = geometry_losses(found, make_targets(depth))
    assert losses["translation"].item() == losses["rotation"].item() == 0


def test_gradients_equal_finite_differences():
    generator = seeded()
    depth = 0.5 + torch.rand(1, 2, 9, 9, generator=generator).double()
    targets = make_targets(depth)

    def loss(log_depth: Tensor, translations: Tensor, quaternion: Tensor, angles: Tensor) -> Tensor:
        return weighted_sum(geometry_losses(GeometryPrediction(log_depth, translations, quaternion, angles), targets))

    shapes = [(1, 2, 9, 9), (1, 2, 3), (1, 2, 4), (1, 2)]
    inputs = [torch.randn(shape, generator=generator).double().requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(loss, inputs)
