"""The recipe with openpi's augmentation: crops of a fixed size, rotations, and wrist cameras with colors alone."""

import math

import pytest
import torch

from rocket_hf.errors import UserError
from rocket_hf.training.data.augmentation import (
    augment,
    check_augmented_cameras,
    draw_augmentation,
    is_color_only,
    is_identity,
)
from rocket_hf.training.recipe import AugmentationConfig
from rocket_hf.training.recipe_files import different_keys, read_vla_recipe


def draw_many(config: AugmentationConfig, camera: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([draw_augmentation(config, camera, generator) for _ in range(500)])


def test_recipe_draws_crops_of_95_percent_of_each_side_and_rotations():
    config = read_vla_recipe("rocket-pi05-crop").data.augmentation
    side, left, top, angle, brightness, contrast, saturation, hue = draw_many(config, "image").unbind(dim=1)
    torch.testing.assert_close(side, torch.full((500,), 0.95))
    for place in (left, top):
        assert 0 <= place.min() < 0.001 and 0.049 < place.max() <= 0.05 + 1e-6
    for values, limit in ((angle, math.radians(5)), (brightness, 0.3), (contrast, 0.4), (saturation, 0.5)):
        assert 0.98 * limit < values.abs().max() <= limit + 1e-6
    assert not hue.any()


@pytest.mark.parametrize("camera", ["wrist", "left_wrist_0_rgb", "observation.images.Hand", "gripperPOV"])
def test_wrist_cameras_of_the_recipe_change_in_color_only(camera):
    config = read_vla_recipe("rocket-pi05-crop").data.augmentation
    check_augmented_cameras(config, ["image"])  # a pattern may match no camera
    rows, others = draw_many(config, camera), draw_many(config, "image")
    assert torch.equal(rows[:, :4], torch.tensor([1.0, 0, 0, 0]).expand(500, -1))
    assert torch.equal(rows[:, 4:], others[:, 4:])


def test_recipe_differs_from_the_published_one_in_crops_and_rotations_only():
    published, cropped = read_vla_recipe("rocket-pi05"), read_vla_recipe("rocket-pi05-crop")
    names = ("crop_area", "crop_fixed", "rotation", "color_only")
    expected = {"name", "about", *(f"data.augmentation.{name}" for name in names)}
    assert set(different_keys(published, cropped)) == expected


def test_fixed_crop_shows_the_window_at_its_place():
    """A ramp from 0 to 1 along x, cropped to half of its side at 0.3: the result rises from 0.3 to 0.8."""
    config = AugmentationConfig(crop_area=0.25, crop_fixed=True)
    assert not is_identity(config) and is_identity(AugmentationConfig(crop_fixed=True))
    row = draw_augmentation(config, "front", torch.Generator().manual_seed(0))
    place = (torch.arange(64) + 0.5) / 64
    images, warp = augment(place.expand(1, 3, 64, 64), torch.cat([row[:1], torch.tensor([0.3, 0.1]), row[3:]])[None])
    torch.testing.assert_close(images[0, 0], (0.3 + 0.5 * place).expand(64, 64), atol=1e-5, rtol=0)
    torch.testing.assert_close(warp[0], torch.tensor([[0.5, 0, 0.3], [0, 0.5, 0.1]]))


def test_fixed_crop_takes_as_many_random_numbers():
    """The draws of noise and time after the augmentation stay the same."""
    one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    fixed = draw_augmentation(AugmentationConfig(crop_area=0.81, crop_fixed=True), "front", one)
    drawn = draw_augmentation(AugmentationConfig(crop_area=0.81), "front", other)
    assert fixed[0] == pytest.approx(0.9) and 0.9 < drawn[0] < 1
    assert torch.equal(torch.rand(3, generator=one), torch.rand(3, generator=other))


def test_listed_camera_must_exist():
    config = AugmentationConfig(color_only=["wirst", "*left*"])
    with pytest.raises(UserError, match="color_only: the policy has no camera 'wirst', its cameras are front, wrist"):
        check_augmented_cameras(config, ["front", "wrist"])
    assert not is_color_only(config, "wrist") and is_color_only(config, "wrist_left")
