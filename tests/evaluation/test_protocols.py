"""How OpenVLA's policies are fed."""

import io

import numpy as np
import torch
from PIL import Image

from rocket_hf.evaluation.protocol import OPENVLA, PLAIN, center_crop, openvla_picture


def test_pixels_are_unchanged_by_default():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert PLAIN.picture(image) is image
    vector = torch.tensor([[0.1, -3.0]])
    assert PLAIN.state(vector) is vector and PLAIN.actions(vector) is vector


def test_openvlas_gripper_and_state():
    actions = torch.tensor([[0.3, 1.0], [0.3, 0.0], [0.3, 0.7]])
    torch.testing.assert_close(OPENVLA.actions(actions), torch.tensor([[0.3, -1.0], [0.3, 1.0], [0.3, -1.0]]))
    torch.testing.assert_close(OPENVLA.state(torch.tensor([2.0, -0.5])), torch.tensor([1.0, -0.5]))


def test_the_crop_is_the_center_bilinearly():
    """Of a ramp, whose crop is the same ramp between the crop's edges, by numpy's interpolation."""
    ramp = np.repeat(np.linspace(0, 255, 224)[None], 224, axis=0)
    edge = (1 - 0.9**0.5) / 2 * 223
    places = np.linspace(edge, 223 - edge, 224)
    wanted = np.interp(places, np.arange(224), ramp[0].astype(np.uint8))
    cropped = center_crop(np.repeat(ramp[..., None], 3, axis=2).astype(np.uint8))
    assert np.abs(cropped[100, :, 0] - wanted).max() <= 0.5 + 1e-3
    assert np.array_equal(cropped[..., 1].transpose(), center_crop(np.ascontiguousarray(
        np.repeat(ramp.T[..., None], 3, axis=2).astype(np.uint8)))[..., 1])  # fmt: skip


def test_openvlas_picture_is_jpeg_then_lanczos_then_crop():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture = openvla_picture(image)
    assert picture.shape == (224, 224, 3)
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "JPEG", quality=95)
    resized = np.asarray(Image.open(stored).resize((224, 224), Image.Resampling.LANCZOS))
    assert np.array_equal(picture, center_crop(resized))
    assert not np.array_equal(picture, openvla_picture(np.asarray(Image.open(stored)) // 2))
