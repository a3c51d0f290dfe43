"""The oracle teacher on points and scenes whose codes are computed by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rocket_hf.errors import UserError
from rocket_hf.sims.environment import DepthView
from rocket_hf.sims.geometry_images import world_points
from rocket_hf.teachers.license import license_note
from rocket_hf.teachers.load import load_teacher
from rocket_hf.teachers.oracle import WAVELENGTHS, OracleTeacher, fourier_code

SIDE, HEIGHT, FOCAL = 32, 1.25, 40.0  # of a camera that faces the table from above: pixels, meters, pixels


def code(*point: float) -> Tensor:
    return fourier_code(torch.tensor(point)[:, None, None])[:, 0, 0]


def test_code_of_known_point_equals_hand_computed_one():
    """The wavelengths are 4 m * (1/16) ** (k/7); an eighth of a wave has equal sine and cosine."""
    second = 4 * 16 ** (-1 / 7)
    assert (WAVELENGTHS[0], WAVELENGTHS[1], WAVELENGTHS[7]) == pytest.approx((4, second, 0.25))
    found = code(1.0, 0.0, 0.5).view(3, 8, 2)
    torch.testing.assert_close(found[0, 0], torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)  # a quarter of 4 m
    torch.testing.assert_close(found[0, 7], torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)  # four times 0.25 m
    torch.testing.assert_close(found[1], torch.tensor([[0.0, 1.0]] * 8))
    torch.testing.assert_close(found[2, 0], torch.full((2,), math.sqrt(0.5)))  # an eighth of 4 m
    torch.testing.assert_close(found[2, 1], torch.tensor([math.sin(math.pi / second), math.cos(math.pi / second)]))


def flat_scene(height: float = HEIGHT) -> Tensor:
    """Return the points of a table at z = 0 below a camera at (0.1, 0.6, height), (1, 1, 3, SIDE, SIDE).

    The camera's x axis is the world's, its y axis is the world's reversed.
    """
    pose = np.array([[1, 0, 0, 0.1], [0, -1, 0, 0.6], [0, 0, -1, height], [0, 0, 0, 1]], np.float32)
    center = (SIDE - 1) / 2
    intrinsics = np.array([[FOCAL, 0, center], [0, FOCAL, center], [0, 0, 1]], np.float32)
    view = DepthView(np.full((SIDE, SIDE), height, np.float32), intrinsics, pose)
    return torch.from_numpy(world_points(view)).float().permute(2, 0, 1)[None, None]


def test_patches_of_flat_scene_have_the_mean_codes_of_their_pixels():
    features = OracleTeacher().features(flat_scene(), [1, -1])
    assert features.grid == (4, 4) and features.maps.keys() == {1, -1}
    assert features.maps[1].shape == (1, 1, 16, 48)
    row, column = 1, 3
    u, v = np.arange(8 * column, 8 * column + 8), np.arange(8 * row, 8 * row + 8)
    x = 0.1 + HEIGHT * (u - 15.5) / FOCAL
    y = 0.6 - HEIGHT * (v - 15.5) / FOCAL
    found = features.maps[1][0, 0, 4 * row + column].view(3, 8, 2).numpy()
    for number, wavelength in enumerate(WAVELENGTHS):
        for axis, values in enumerate((x, y)):
            angles = 2 * np.pi * values / wavelength
            np.testing.assert_allclose(found[axis, number], [np.sin(angles).mean(), np.cos(angles).mean()], atol=1e-5)
        np.testing.assert_allclose(found[2, number], [0, 1], atol=1e-5)


def test_code_of_a_flat_scene_depends_on_places_not_on_the_camera():
    """A camera at three times the height shows the point of the pixel 1.5 pixels off the center at 0.5 pixels."""
    low, high = (fourier_code(flat_scene(height)[0, 0]) for height in (HEIGHT, 3 * HEIGHT))
    torch.testing.assert_close(low[:, 17, 14], high[:, 16, 15], atol=1e-4, rtol=0)
    assert (low[:, 17, 14] - high[:, 17, 14]).abs().max() > 0.1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cosine_similarity_falls_with_metric_distance(axis):
    origin = torch.tensor([0.1, 0.7, 0.05])
    distances = torch.arange(0, 0.19, 0.01)
    points = origin[:, None].repeat(1, len(distances))
    points[axis] += distances
    codes = fourier_code(points[:, None])[:, 0].T  # (distances, 48)
    similarity = torch.cosine_similarity(codes, codes[:1], dim=-1)
    assert (similarity.diff() < 0).all()
    at_5_cm = (2 + sum(math.cos(2 * math.pi * 0.05 / wavelength) for wavelength in WAVELENGTHS) / 8) / 3
    assert similarity[5].item() == pytest.approx(at_5_cm, abs=1e-5)


def test_missing_camera_has_features_of_zeros():
    points = flat_scene().repeat(2, 2, 1, 1, 1)
    mask = torch.tensor([[True, False], [True, True]])
    tokens = OracleTeacher().features(points, [1], mask).maps[1]
    assert not tokens[0, 1].any() and torch.equal(tokens[1, 1], tokens[0, 0]) and tokens[0, 0].any()


def test_oracle_cannot_run_during_training():
    with pytest.raises(UserError, match="reads recorded depth instead of images: build a feature cache with"):
        load_teacher("oracle")
    card = OracleTeacher().card
    assert card.license == "apache-2.0" and not license_note(card.name, card.license)
    with pytest.raises(UserError, match="oracle has no layer 3"):
        OracleTeacher().features(flat_scene(), [3])


def test_untrained_teacher_is_the_embedded_one_with_random_weights():
    trained, untrained, again = map(load_teacher, ("embedded", "embedded-untrained", "embedded-untrained"))
    assert untrained.card == again.card and untrained.card.name == "embedded-untrained"
    assert untrained.card.weights != trained.card.weights
    for name in ("depth", "width", "patch_size", "license"):
        assert getattr(untrained.card, name) == getattr(trained.card, name)
    images = torch.rand(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    one, other, third = (each.features(images, [-1]).maps[-1] for each in (untrained, again, trained))
    assert torch.equal(one, other) and one.shape == third.shape and not torch.allclose(one, third, atol=0.1)
    assert load_teacher("embedded-untrained", device="meta").card.depth == untrained.card.depth
