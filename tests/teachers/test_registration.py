"""Registration of teacher features on the student's grid, compared with torch's interpolation, also for crops."""

import pytest
import torch
import torch.nn.functional as F

from rocket_hf.teachers.registration import WHOLE_IMAGE, Registration, position_code, register_features
from rocket_hf.teachers.teacher import Features

GRIDS = [((37, 37), (16, 16)), ((16, 16), (16, 16)), ((10, 14), (5, 4)), ((6, 9), (12, 16)), ((37, 20), (16, 32))]
IDENTITY = torch.tensor([[1.0, 0, 0], [0, 1, 0]])


def as_maps(features, grid):
    return features.flatten(0, -3).transpose(1, 2).unflatten(2, grid)


def as_features(maps, leading):
    return maps.flatten(2).transpose(1, 2).unflatten(0, leading)


def coordinate_map(grid):
    """Return a feature map (1, 1, P, 2) with the center (x, y) of each patch."""
    y, x = ((torch.arange(side) + 0.5) / side for side in grid)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)[None, None]


@pytest.mark.parametrize(("grid", "target"), GRIDS)
def test_resampling_equals_torch_with_antialiasing(grid, target):
    features = torch.randn(2, 3, grid[0] * grid[1], 8)
    expected = F.interpolate(as_maps(features, grid), size=target, mode="bilinear", antialias=True)
    ours = register_features(features, grid, target, code_weight=0)
    torch.testing.assert_close(ours, as_features(expected, (2, 3)))


@pytest.mark.parametrize(("grid", "target"), GRIDS)
def test_patch_centers_coincide(grid, target):
    """A resampled coordinate map equals the new coordinates, away from the border, to 3 % of a cell."""
    moved = register_features(coordinate_map(grid)[0, 0], grid, target, code_weight=0).unflatten(0, target)
    expected = [(torch.arange(side) + 0.5) / side for side in target]
    inner = [slice(max(1, round(b / a)), -max(1, round(b / a))) for a, b in zip(grid, target, strict=True)]
    for axis, along in enumerate((moved[:, 0, 1], moved[0, :, 0])):
        tolerance = 0.03 / target[axis]
        torch.testing.assert_close(along[inner[axis]], expected[axis][inner[axis]], atol=tolerance, rtol=0)


@pytest.mark.parametrize(("grid", "target"), GRIDS)
def test_reference_compat_equals_public_code(grid, target):
    """The public code adds the position code to every map and then interpolates with aligned corners."""
    features = torch.randn(2, 2, grid[0] * grid[1], 8)
    coded = as_maps(features + 0.1 * position_code(grid, 8), grid)
    expected = F.interpolate(coded.double(), size=target, mode="bilinear", align_corners=True).float()
    ours = Registration(target, [WHOLE_IMAGE, WHOLE_IMAGE], reference_compat=True)(Features({3: features}, grid))
    torch.testing.assert_close(ours[3], as_features(expected, (2, 2)), atol=1e-5, rtol=0)


def test_adding_resampled_code_equals_resampling_coded_map():
    features, grid, target = torch.randn(2, 37 * 37, 64), (37, 37), (16, 16)
    coded = features + 0.1 * position_code(grid, 64)
    expected = register_features(coded, grid, target, code_weight=0)
    torch.testing.assert_close(register_features(features, grid, target), expected, atol=1e-5, rtol=1e-5)


def test_position_code_equals_published_formula():
    """Compute one cell of a wide grid by hand: x in the first half of the channels, y in the second."""
    rows, columns, channels = 3, 4, 8
    code = position_code((rows, columns), channels).unflatten(0, (rows, columns))
    aspect = columns / rows
    diagonal = (aspect**2 + 1) ** 0.5
    x = aspect / diagonal * (columns - 1) / columns  # the last column
    y = -1 / diagonal * (rows - 1) / rows  # the first row
    frequencies = torch.tensor([1.0, 100**-0.5])
    expected = torch.cat(
        [(x * frequencies).sin(), (x * frequencies).cos(), (y * frequencies).sin(), (y * frequencies).cos()]
    )
    torch.testing.assert_close(code[0, -1], expected)


def test_features_are_not_changed_in_place():
    features = torch.randn(1, 16, 8)
    before = features.clone()
    register_features(features, (4, 4), (4, 4))
    assert torch.equal(features, before)


# Windows


def test_window_equals_slice_of_whole_image():
    """A window of whole cells, at the resolution of the source, is a slice."""
    features = torch.randn(1, 8 * 8, 4)
    part = register_features(features, (8, 8), (4, 2), window=(0.25, 0.5, 0.75, 0.75), code_weight=0)
    torch.testing.assert_close(part, features.unflatten(1, (8, 8))[:, 2:6, 4:6].flatten(1, 2))


def test_letterbox_bars_have_zero_targets():
    """An image twice as wide as high in a square of 4 x 4 patches: the upper and the lower row are bars."""
    features = Features({1: torch.randn(2, 1, 8 * 16, 8)}, (8, 16))
    targets = Registration((4, 4), [(-0.5, 0.0, 1.5, 1.0)])(features)[1].unflatten(2, (4, 4))
    assert (targets[:, :, [0, 3]] == 0).all()
    assert (targets[:, :, 1:3] != 0).any(dim=-1).all()


def test_cameras_may_have_different_windows():
    features = torch.randn(2, 3, 6 * 6, 8)
    windows = [WHOLE_IMAGE, (-0.5, 0.0, 1.5, 1.0), WHOLE_IMAGE]
    together = Registration((4, 4), windows)(Features({-1: features}, (6, 6)))[-1]
    for camera, window in enumerate(windows):
        alone = Registration((4, 4), [window])(Features({-1: features[:, camera : camera + 1]}, (6, 6)))[-1]
        assert torch.equal(together[:, camera : camera + 1], alone)


# Warps


@pytest.mark.parametrize(("grid", "target"), GRIDS)
def test_identity_warp_equals_no_warp(grid, target):
    features = Features({2: torch.randn(2, 2, grid[0] * grid[1], 8)}, grid)
    registration = Registration(target, [WHOLE_IMAGE, WHOLE_IMAGE])
    warped = registration(features, IDENTITY.expand(2, 2, 2, 3))[2]
    torch.testing.assert_close(warped, registration(features)[2], atol=1e-5, rtol=1e-4)


def test_warped_features_equal_torch_grid_sample():
    torch.manual_seed(0)
    features, grid, target = torch.randn(3, 1, 7 * 9, 4), (7, 9), (7, 9)
    warp = 0.8 * IDENTITY + 0.05 * torch.randn(3, 1, 2, 3)
    ours = Registration(target, [WHOLE_IMAGE])(Features({1: features}, grid), warp)[1]
    positions = coordinate_map(target)[0] @ warp[:, 0, :, :2].mT + warp[:, 0, None, :, 2]
    sampling_grid = (2 * positions - 1).unflatten(1, target)
    expected = F.grid_sample(as_maps(features, grid), sampling_grid, padding_mode="border", align_corners=False)
    expected = as_features(expected, (3, 1)) + 0.1 * position_code(grid, 4)
    is_visible = ((positions >= 0) & (positions <= 1)).all(-1)[:, None, :, None]
    torch.testing.assert_close(ours, expected * is_visible, atol=1e-5, rtol=1e-4)


def test_crop_is_sampled_at_its_patch_centers():
    """Patches of the upper left quarter have the coordinates of that quarter, to a hundredth of a patch."""
    grid, target = (16, 16), (4, 4)
    warp = torch.tensor([[0.5, 0, 0], [0, 0.5, 0]])[None, None]
    maps = F.pad(coordinate_map(grid), (0, 2))  # the position code needs a multiple of 4 channels
    targets = Registration(target, [WHOLE_IMAGE])(Features({1: maps}, grid), warp)[1]
    code = 0.1 * register_features(position_code(grid, 4), grid, target, code_weight=0)
    inner = (targets[0, 0] - code)[..., :2].unflatten(0, target)[1:, 1:]
    expected = (coordinate_map(target)[0, 0] / 2).unflatten(0, target)[1:, 1:]
    torch.testing.assert_close(inner, expected, atol=0.01 / 4, rtol=0)


def test_projection_before_registration_equals_projection_after():
    features, projection = torch.randn(2, 1, 6 * 6, 8), torch.randn(8, 4)
    warp = (IDENTITY * 0.9).expand(2, 1, 2, 3)
    registration = Registration((4, 4), [WHOLE_IMAGE])
    after = registration(Features({1: features}, (6, 6)), warp)[1] @ projection
    before = registration(Features({1: features @ projection}, (6, 6)), warp, {1: projection})[1]
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-4)
