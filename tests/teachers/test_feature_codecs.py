"""Codecs and projections of stored features, compared with torch's rounding, quantization and singular values."""

import pytest
import torch

from rocket_hf.teachers.feature_codecs import decode, encode, layout, stored_bytes
from rocket_hf.teachers.projection import SecondMoment, load_matrices, projection_digest

ROBOT = (10, 2, 256)  # layers, cameras, 16 x 16 patches
CHANNELS = 2048


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw tokens like a teacher's: of very different lengths, with a few channels far stronger than the rest."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.rand(shape[-1], generator=generator).pow(-0.5).clamp_max(20)
    directions = torch.randn(shape, generator=generator)
    return directions * strength * torch.rand(*shape[:-1], 1, generator=generator).exp() * 5


@pytest.mark.parametrize(
    ("storage", "width", "megabytes"), [("bf16", CHANNELS, 21), ("int8", CHANNELS, 10.6), ("projected", 256, 1.4)]
)
def test_frame_of_two_cameras_and_ten_layers_has_documented_size(storage, width, megabytes):
    stored = encode(random_tokens(*ROBOT, width), storage)
    actual = sum(tensor.nbytes for tensor in stored.values())
    assert actual == stored_bytes(storage, ROBOT, width)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()} == layout(
        storage, ROBOT, width
    )
    assert actual + 8 * 10 * 2 <= megabytes * 1e6  # including a checksum of each layer of each camera


def test_bf16_rounds_like_torch():
    features = random_tokens(3, 4, 32)
    assert torch.equal(decode(encode(features, "bf16"), "bf16"), features.bfloat16().float())
    assert decode(encode(features, "bf16"), "bf16", torch.bfloat16).dtype == torch.bfloat16


def test_int8_equals_torch_symmetric_quantization_of_each_token():
    features = random_tokens(50, 64)
    stored = encode(features, "int8")
    scales = stored["scales"].float()
    torch.testing.assert_close(scales, features.abs().amax(-1) / 127, rtol=2**-11, atol=0)
    expected = torch.fake_quantize_per_channel_affine(
        features, scales, torch.zeros(50, dtype=torch.int32), 0, -127, 127
    )
    assert torch.equal(decode(stored, "int8"), expected)


def test_int8_keeps_direction_of_tokens():
    features = random_tokens(2000, CHANNELS)
    cosines = torch.cosine_similarity(decode(encode(features, "int8"), "int8"), features, dim=-1)
    assert cosines.mean() >= 0.999


@pytest.mark.parametrize("size", [0, 1e-9, 1e-6, 1e4])
def test_int8_stores_tokens_of_any_length(size):
    features = size * torch.tensor([[1.0, -0.5, 0.25, 0.0]])
    decoded = decode(encode(features, "int8"), "int8")
    assert (decoded - features).abs().max() <= max(size / 250, 2**-25)


def test_components_equal_singular_vectors_and_keep_stated_share():
    features = random_tokens(600, 16).reshape(6, 2, 50, 16)
    moment = SecondMoment([3], 16)
    for batch in features.split(2):
        moment.add({3: batch})
    projections = moment.principal_components(5)
    _, values, directions = torch.linalg.svd(features.reshape(-1, 16).double(), full_matrices=False)
    torch.testing.assert_close(projections.matrices[3].T.abs(), directions[:5].abs().float(), rtol=1e-4, atol=1e-4)
    share = values[:5].square().sum() / values.square().sum()
    assert projections.kept[3] == pytest.approx(share.item(), abs=2e-6)


def test_new_features_keep_same_share_as_fitted_ones():
    fitted, new = random_tokens(4000, 64, seed=1), random_tokens(4000, 64, seed=1)[torch.randperm(4000)]
    mixing = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    new = (new + torch.randn(4000, 64) * 0.1) @ mixing
    moment = SecondMoment([1], 64)
    moment.add({1: fitted @ mixing})
    projections = moment.principal_components(16)
    projected = new @ projections.matrices[1]
    assert (projected.square().sum() / new.square().sum()).item() == pytest.approx(projections.kept[1], rel=0.03)
    cosines = torch.cosine_similarity(projected @ projections.matrices[1].T, new, dim=-1)
    assert cosines.square().mean().item() == pytest.approx(projections.kept[1], rel=0.05)


def test_projection_with_other_digest_raises(tmp_path):
    moment = SecondMoment([-1, 4], 8)
    moment.add({layer: random_tokens(20, 8, seed=layer + 1) for layer in (-1, 4)})
    projections = moment.principal_components(3)
    projections.save(tmp_path)
    loaded = load_matrices(tmp_path, projection_digest(tmp_path))
    assert all(torch.equal(loaded[layer], projections.matrices[layer]) for layer in (-1, 4))
    with pytest.raises(ValueError, match="not the file that this cache was built with"):
        load_matrices(tmp_path, "0" * 64)
