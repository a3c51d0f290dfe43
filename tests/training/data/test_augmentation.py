"""Augmentation agrees with torchvision's functions, and its warp maps each pixel to its origin."""

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from rocket_hf.errors import UserError
from rocket_hf.training.data.augmentation import (
    PARAMETERS,
    augment,
    check_augmented_cameras,
    draw_augmentation,
    draw_augmentations,
    is_identity,
)
from rocket_hf.training.recipe import AugmentationConfig

HEIGHT, WIDTH = 24, 40
EVERYTHING = AugmentationConfig(crop_area=0.7, rotation=10, brightness=0.2, contrast=0.3, saturation=0.4, hue=0.1)


def smooth_images(count=2):
    """Return smooth random images, so that differences of interpolation stay within small tolerances."""
    coarse = torch.rand(count, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bicubic").clamp(0, 1)


def row(**values):
    return torch.tensor([values.get(name, 1.0 if name == "side" else 0.0) for name in PARAMETERS])


def test_neutral_parameters_return_the_image_bit_for_bit():
    original = smooth_images()
    changed = torch.stack([row(), row(side=0.8, hue=0.2)])
    augmented, warp = augment(original, changed)
    assert torch.equal(augmented[0], original[0])
    assert not torch.equal(augmented[1], original[1])
    assert torch.equal(warp[0], torch.eye(2, 3))


@pytest.mark.parametrize(
    ("change", "reference"),
    [
        ({"brightness": 0.3}, lambda image: (image + 0.3).clamp(0, 1)),
        ({"contrast": -0.4}, lambda image: vision.adjust_contrast(image, 0.6)),
        ({"contrast": 0.4}, lambda image: vision.adjust_contrast(image, 1.4)),
        ({"saturation": -1.0}, lambda image: vision.adjust_saturation(image, 0.0)),
        ({"saturation": 0.5}, lambda image: vision.adjust_saturation(image, 1.5)),
        ({"hue": 0.2}, lambda image: vision.adjust_hue(image, 0.2)),
        ({"hue": -0.45}, lambda image: vision.adjust_hue(image, -0.45)),
        (
            {"contrast": 0.2, "saturation": 0.3, "hue": 0.1},
            lambda image: vision.adjust_hue(
                vision.adjust_saturation(vision.adjust_contrast(image, 1.2), 1.3), 0.1
            ),
        ),
    ],
)  # fmt: skip
def test_color_changes_agree_with_torchvision(change, reference):
    original = smooth_images(2)
    augmented, _ = augment(original, torch.stack([row(**change), row()]))
    torch.testing.assert_close(augmented[0], reference(original[0]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("degrees", [7.0, -30.0])
def test_rotation_agrees_with_torchvision(degrees):
    original = smooth_images()
    angle = torch.stack([row(angle=math.radians(degrees))] * 2)
    expected = vision.rotate(original, degrees, InterpolationMode.BILINEAR)
    torch.testing.assert_close(augment(original, angle)[0], expected, atol=1e-4, rtol=0)


def test_crop_agrees_with_torchvision_inside_of_the_window_edge():
    original = smooth_images()
    left, top, width, height = 10, 6, 20, 12
    crop = torch.stack([row(side=0.5, left=left / WIDTH, top=top / HEIGHT)] * 2)
    expected = vision.resized_crop(original, top, left, height, width, [HEIGHT, WIDTH], antialias=False)
    cropped = augment(original, crop)[0]
    torch.testing.assert_close(cropped[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-5, rtol=0)


def test_warp_maps_a_marked_pixel_back_to_its_origin():
    y, x = 9, 26
    marked = torch.zeros(1, 3, HEIGHT, WIDTH)
    marked[..., y, x] = 1
    parameters = row(side=0.7, left=0.25, top=0.1, angle=0.4)[None]
    augmented, warp = augment(marked, parameters)
    weights = augmented[0, 0] / augmented[0, 0].sum()
    found = torch.tensor([
        (weights.sum(dim=0) * (torch.arange(WIDTH) + 0.5)).sum() / WIDTH,
        (weights.sum(dim=1) * (torch.arange(HEIGHT) + 0.5)).sum() / HEIGHT,
        1.0,
    ])  # fmt: skip
    origin = warp[0] @ found
    assert origin[0] * WIDTH == pytest.approx(x + 0.5, abs=0.3)
    assert origin[1] * HEIGHT == pytest.approx(y + 0.5, abs=0.3)


def test_drawn_parameters_lie_within_the_configured_limits():
    generator = torch.Generator().manual_seed(0)
    parameters = torch.stack([draw_augmentation(EVERYTHING, "front", generator) for _ in range(4000)])
    side, left, top, angle, brightness, contrast, saturation, hue = parameters.unbind(dim=1)
    assert side.square().min() >= 0.7 - 1e-6
    assert side.square().mean() == pytest.approx(0.85, abs=0.01)
    assert min(left.min(), top.min()) >= 0
    assert max((left + side).max(), (top + side).max()) <= 1 + 1e-6
    limits = (math.radians(10), 0.2, 0.3, 0.4, 0.1)
    for values, limit in zip((angle, brightness, contrast, saturation, hue), limits, strict=True):
        assert 0.95 * limit < values.abs().max() <= limit + 1e-6
        assert abs(values.mean()) < 0.05 * limit


def test_color_only_camera_is_not_cropped_or_rotated_and_draws_as_many_numbers():
    config = AugmentationConfig(**(vars(EVERYTHING) | {"color_only": ["wrist"]}))
    one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    wrist, front = draw_augmentation(config, "wrist", one), draw_augmentation(config, "front", other)
    assert wrist[:4].tolist() == [1, 0, 0, 0]
    assert torch.equal(wrist[4:], front[4:])
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=other))


def test_map_gets_the_crop_and_rotation_of_its_camera_and_no_color_changes():
    config = AugmentationConfig(**(vars(EVERYTHING) | {"same_geometry": {"front_xyz": "front"}}))
    cameras = ["front_xyz", "wrist", "front"]
    one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    rows = draw_augmentations(config, cameras, one)
    alone = torch.stack([draw_augmentation(EVERYTHING, camera, other) for camera in cameras])
    assert torch.equal(rows[1:], alone[1:]), "the other cameras draw the same as without the map"
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=other))
    assert torch.equal(rows[0, :4], rows[2, :4]) and not rows[0, 4:].any() and rows[2, 4:].all()


def test_augmented_map_shows_the_coordinates_of_the_pixels_of_its_image():
    """Red and green of the map are each pixel's place. With a crop window of half of the side, whose middle is (3/8,
    1/2), turned by 90 degrees, pixel (x, y) must show the place (3/8, 1/2) + (1/2 - y, x - 1/2) / 2."""
    side = 64
    place = (torch.arange(side) + 0.5) / side
    image = torch.stack([place.expand(side, side), place[:, None].expand(side, side), torch.zeros(side, side)])
    geometry = {"side": 0.5, "left": 0.125, "top": 0.25, "angle": math.pi / 2}
    both, warp = augment(torch.stack([image, image]), torch.stack([row(**geometry), row(**geometry, brightness=0.2)]))
    assert torch.equal(warp[0], warp[1])
    expected_x = 3 / 8 - (place[:, None].expand(side, side) - 1 / 2) / 2
    expected_y = 1 / 2 + (place.expand(side, side) - 1 / 2) / 2
    torch.testing.assert_close(both[0, 0], expected_x, atol=1e-5, rtol=0)
    torch.testing.assert_close(both[0, 1], expected_y, atol=1e-5, rtol=0)
    torch.testing.assert_close(both[1, :2], (both[0, :2] + 0.2).clamp(0, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"same_geometry": {"front_xyz": "frnt"}}, "same_geometry: the policy has no camera 'frnt', its cameras are"),
        ({"same_geometry": {"map": "front"}}, "same_geometry: the policy has no camera 'map', its cameras are"),
        ({"same_geometry": {"front_xyz": "wrist", "wrist": "front"}}, "'wrist' of 'front_xyz' follows another camera"),
        ({"same_geometry": {"wrist": "front"}, "color_only": ["wrist"]}, "'wrist' is both in color_only and in"),
    ],
)
def test_contradictory_cameras_raise_one_sentence(settings, message):
    with pytest.raises(UserError, match=message):
        check_augmented_cameras(AugmentationConfig(**settings), ["front", "wrist", "front_xyz"])


def test_default_configuration_changes_nothing():
    assert is_identity(AugmentationConfig(color_only=["wrist"]))
    assert not is_identity(AugmentationConfig(crop_area=0.9))
    parameters = draw_augmentation(AugmentationConfig(), "front", torch.Generator().manual_seed(0))
    assert torch.equal(parameters, row())
