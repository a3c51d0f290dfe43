"""Teacher features on another grid: against torch's own interpolation, and by patch centres."""

import pytest
import torch
import torch.nn.functional as F

from rocket_hf.teachers.registration import position_code, register_features

GRIDS = [((37, 37), (16, 16)), ((16, 16), (16, 16)), ((10, 14), (5, 4)), ((6, 9), (12, 16)), ((37, 20), (16, 32))]


@pytest.mark.parametrize(("grid", "target"), GRIDS)
def test_resampling_is_torchs_with_antialiasing(grid, target):
    features = torch.randn(2, 3, grid[0] * grid[1], 8)
    maps = features.flatten(0, 1).transpose(1, 2).unflatten(2, grid)
    expected = F.interpolate(maps, size=target, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
    ours = register_features(features, grid, target, code_weight=0)
    torch.testing.assert_close(ours, expected.unflatten(0, (2, 3)))


@pytest.mark.parametrize(("grid", "target"), GRIDS)
def test_patch_centres_coincide(grid, target):
    """A map of its own coordinates keeps them, away from the border, to 3 % of a cell."""
    rows, columns = ((torch.arange(side) + 0.5) / side for side in grid)
    features = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    moved = register_features(features, grid, target, code_weight=0).unflatten(0, target)
    expected = [(torch.arange(side) + 0.5) / side for side in target]
    inner = [slice(max(1, round(b / a)), -max(1, round(b / a))) for a, b in zip(grid, target, strict=True)]
    for axis, along in enumerate((moved[:, 0, 0], moved[0, :, 1])):
        tolerance = 0.03 / target[axis]
        torch.testing.assert_close(along[inner[axis]], expected[axis][inner[axis]], atol=tolerance, rtol=0)


def test_adding_the_code_once_is_adding_it_to_every_map():
    features, grid, target = torch.randn(2, 37 * 37, 64), (37, 37), (16, 16)
    coded = features + 0.1 * position_code(grid, 64)
    expected = register_features(coded, grid, target, code_weight=0)
    torch.testing.assert_close(register_features(features, grid, target), expected, atol=1e-5, rtol=1e-5)


def test_the_position_code_is_the_published_one():
    """By hand, for one cell of a grid that is wider than high: x in the first half, y in the second."""
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
