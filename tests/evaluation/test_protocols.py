"""Conversions of images, states and actions for OpenVLA's policies."""

import io

import numpy as np
import torch
from PIL import Image

from rocket_hf.evaluation.protocol import OPENVLA, PLAIN, center_crop, openvla_image


def test_plain_protocol_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert PLAIN.convert_image(image) is image
    vector = torch.tensor([[0.1, -3.0]])
    assert PLAIN.convert_state(vector) is vector and PLAIN.convert_actions(vector) is vector


def test_openvla_gripper_is_inverted_and_state_clipped():
    actions = torch.tensor([[0.3, 1.0], [0.3, 0.0], [0.3, 0.7]])
    torch.testing.assert_close(OPENVLA.convert_actions(actions), torch.tensor([[0.3, -1.0], [0.3, 1.0], [0.3, -1.0]]))
    torch.testing.assert_close(OPENVLA.convert_state(torch.tensor([2.0, -0.5])), torch.tensor([1.0, -0.5]))


def test_crop_is_the_bilinearly_resized_center():
    """The crop of a ramp is the ramp between the edges of the crop, interpolated by numpy."""
    ramp = np.repeat(np.linspace(0, 255, 224)[None], 224, axis=0)
    edge = (1 - 0.9**0.5) / 2 * 223
    positions = np.linspace(edge, 223 - edge, 224)
    expected = np.interp(positions, np.arange(224), ramp[0].astype(np.uint8))
    cropped = center_crop(np.repeat(ramp[..., None], 3, axis=2).astype(np.uint8))
    assert np.abs(cropped[100, :, 0] - expected).max() <= 0.5 + 1e-3
    assert np.array_equal(cropped[..., 1].transpose(), center_crop(np.ascontiguousarray(
        np.repeat(ramp.T[..., None], 3, axis=2).astype(np.uint8)))[..., 1])  # fmt: skip


def test_openvla_image_is_compressed_resized_and_cropped():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    converted = openvla_image(image)
    assert converted.shape == (224, 224, 3)
    stored = io.BytesIO()
    Image.fromarray(image).save(stored, "JPEG", quality=95)
    resized = np.asarray(Image.open(stored).resize((224, 224), Image.Resampling.LANCZOS))
    assert np.array_equal(converted, center_crop(resized))
    assert not np.array_equal(converted, openvla_image(np.asarray(Image.open(stored)) // 2))
