"""VGGT's aggregator, compared with transformers' DINOv2 and with explicit attention, and its invariances."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from rocket_hf.teachers.vggt import (
    VggtAggregator,
    VggtAttention,
    VggtConfig,
    VggtTeacher,
    rotation_table,
    vggt_card,
)
from tests.tiny_vggt import tiny_vggt_config


@pytest.fixture(scope="module")
def aggregator() -> VggtAggregator:
    """Tiny aggregator with random weights."""
    return randomized(VggtAggregator(tiny_vggt_config()))


def randomized[Module: torch.nn.Module](module: Module) -> Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return module.eval().requires_grad_(False)


def random_frames(scenes: int = 2, count: int = 3, size: tuple[int, int] = (56, 84)) -> torch.Tensor:
    return torch.randn(scenes, count, 3, *size, generator=torch.Generator().manual_seed(1))


def make_teacher(aggregator: VggtAggregator, **settings) -> VggtTeacher:
    return VggtTeacher(aggregator, vggt_card(aggregator.config, "tiny", "0", "unknown"), **settings)


def random_images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def test_vggt_1b_has_public_number_of_tensors_and_parameters():
    with torch.device("meta"):
        full = VggtAggregator(VggtConfig())
    assert len(full.state_dict()) == 1210
    assert sum(parameter.numel() for parameter in full.parameters()) == 909_112_320
    assert sum(parameter.numel() for parameter in full.patch_embed.parameters()) == 304_372_736
    assert not list(full.buffers())


# Comparison with transformers' DINOv2 with registers

TO_DINO = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "register_tokens": "embeddings.register_tokens",
    "mask_token": "embeddings.mask_token",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
TO_DINO_BLOCK = {"norm1": "norm1", "attn.proj": "attention.output.dense", "norm2": "norm2",
                 "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}  # fmt: skip


def dino_weights(encoder: torch.nn.Module) -> dict[str, torch.Tensor]:
    weights = {}
    for name, tensor in encoder.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if not name.startswith("blocks."):
            weights[f"{TO_DINO[stem]}.{kind}" if stem else TO_DINO[name]] = tensor
            continue
        _, number, part = stem.split(".", 2)
        block = f"encoder.layer.{number}"
        if part == "attn.qkv":
            for each, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                weights[f"{block}.attention.attention.{each}.{kind}"] = third
        elif kind == "gamma":
            weights[f"{block}.layer_scale{part[-1]}.lambda1"] = tensor
        else:
            weights[f"{block}.{TO_DINO_BLOCK[part]}.{kind}"] = tensor
    return weights


@pytest.mark.parametrize("size", [(84, 84), (56, 84), (140, 98)])
def test_patch_encoder_equals_dinov2_with_registers(aggregator, size):
    config = aggregator.config
    theirs = Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(
            hidden_size=config.embed_dim,
            num_hidden_layers=config.patch_embed_depth,
            num_attention_heads=config.patch_embed_heads,
            image_size=config.img_size,
            patch_size=config.patch_size,
            num_register_tokens=config.num_register_tokens,
        )
    ).eval()
    theirs.load_state_dict(dino_weights(aggregator.patch_embed), strict=True)
    pixels = random_frames(1, 2, size)[0]
    with torch.no_grad():
        expected = theirs(pixels).last_hidden_state[:, 1 + config.num_register_tokens :]
    grid = (size[0] // 14, size[1] // 14)
    ours = aggregator.patch_embed(pixels, aggregator.patch_embed.positions(grid))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


# Comparison with explicit attention


def rotate_by_hand(vector: list[float], position: tuple[int, int], base: float) -> list[float]:
    """Rotate a head's channels at position (row, column) with complex numbers.

    The first half rotates with the row, the second with the column. Within each half, channel k is the real part and
    channel k + a quarter the imaginary part of one number.
    """
    half, result = len(vector) // 2, []
    for axis, coordinate in enumerate(position):
        channels = vector[axis * half : (axis + 1) * half]
        pairs = [
            complex(channels[k], channels[k + half // 2])
            * complex(math.cos(coordinate * base ** (-2 * k / half)), math.sin(coordinate * base ** (-2 * k / half)))
            for k in range(half // 2)
        ]
        result += [pair.real for pair in pairs] + [pair.imag for pair in pairs]
    return result


def test_attention_equals_explicit_computation():
    width, heads, grid, count, base = 16, 2, (2, 3), 2, 100.0
    attention = randomized(VggtAttention(width, heads, normalize=True).double())
    positions = [(0, 0)] * 3 + [(row + 1, column + 1) for row in range(grid[0]) for column in range(grid[1])]
    positions = positions * count
    hidden = torch.randn(1, len(positions), width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    table = rotation_table(grid, 3, count, width // heads, base, hidden.device, torch.float64)

    projected = attention.qkv(hidden)[0]  # (tokens, 3 x width): queries, keys, values, each head by head
    mixed = []
    for head in range(heads):
        part = [projected[:, kind * width + head * 8 : kind * width + (head + 1) * 8] for kind in range(3)]
        query, key = (
            torch.tensor([rotate_by_hand(v, p, base) for v, p in zip(norm(each).tolist(), positions, strict=True)])
            for norm, each in ((attention.q_norm, part[0]), (attention.k_norm, part[1]))
        )
        scores = query.double() @ key.double().T / math.sqrt(8)
        mixed.append((scores.exp() / scores.exp().sum(1, keepdim=True)) @ part[2])
    expected = attention.proj(torch.cat(mixed, dim=1))
    torch.testing.assert_close(attention(hidden, table)[0], expected, atol=1e-5, rtol=1e-5)


def test_layers_equal_concatenated_outputs_of_blocks(aggregator):
    """Compare with outputs that forward hooks on the blocks record."""
    outputs = {}
    hooks = [
        block.register_forward_hook(lambda block, inputs, output, key=(kind, number): outputs.update({key: output}))
        for kind in ("frame_blocks", "global_blocks")
        for number, block in enumerate(aggregator.get_submodule(kind).children(), start=1)
    ]
    maps = aggregator(random_frames(), [1, 3])
    for hook in hooks:
        hook.remove()
    assert list(maps) == [1, 3]
    assert max(number for _, number in outputs) == 3  # the fourth block did not run
    for layer, each in maps.items():
        framed = outputs["frame_blocks", layer].reshape(2, 3, 5 + 24, 16)[:, :, 5:]
        across_frames = outputs["global_blocks", layer].reshape(2, 3, 5 + 24, 16)[:, :, 5:]
        assert torch.equal(each, torch.cat([framed, across_frames], dim=-1))


# Invariances


def close(ours: dict[int, torch.Tensor], theirs: dict[int, torch.Tensor]) -> bool:
    return all(torch.allclose(ours[layer], theirs[layer], atol=1e-4) for layer in theirs)


def test_order_of_other_frames_does_not_change_features(aggregator):
    images, order = random_frames(), [0, 2, 1]
    straight, mixed = aggregator(images, [2, 4]), aggregator(images[:, order], [2, 4])
    assert close(mixed, {layer: maps[:, order] for layer, maps in straight.items()})


def test_choice_of_first_frame_changes_features(aggregator):
    images, order = random_frames(), [1, 0, 2]
    straight, mixed = aggregator(images, [4]), aggregator(images[:, order], [4])
    assert not close(mixed, {4: straight[4][:, order]})


def test_frames_interact_only_in_global_blocks(aggregator):
    images = random_frames()
    other = images.clone()
    other[:, 2] = 0
    assert not torch.allclose(aggregator(images, [1])[1][:, 0], aggregator(other, [1])[1][:, 0])
    width = aggregator.config.embed_dim
    without_global = randomized(VggtAggregator(tiny_vggt_config()))
    for block in without_global.global_blocks:
        block.get_parameter("ls1.gamma").zero_()
    straight, changed = without_global(images, [4])[4], without_global(other, [4])[4]
    assert torch.equal(straight[:, :2], changed[:, :2])
    assert not torch.allclose(straight[:, 2, :, :width], changed[:, 2, :, :width])


def test_scenes_are_independent(aggregator):
    images = random_frames()
    assert close({4: aggregator(images, [4])[4][1:]}, aggregator(images[1:], [4]))


# The teacher


def test_negative_layers_count_from_the_end(aggregator):
    maps = make_teacher(aggregator).features(random_images(1, 2, 3, 56, 56), [-1, 4, -4, 1]).maps
    assert list(maps) == [-1, 4, -4, 1]
    assert torch.equal(maps[-1], maps[4]) and torch.equal(maps[-4], maps[1])


def test_features_have_teacher_dtype_and_no_gradient():
    rounded = make_teacher(randomized(VggtAggregator(tiny_vggt_config())).to(torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.float16):
        found = rounded.features(random_images(1, 1, 3, 28, 28), [2]).maps[2]
    assert found.dtype == torch.bfloat16 and not found.requires_grad
    weight = torch.ones((), requires_grad=True)
    (weight * found.float()).sum().backward()  # would raise for tensors of inference mode
    assert weight.grad is not None


def test_bfloat16_is_close_to_float32(aggregator):
    images = random_images(2, 2, 3, 84, 84)
    exact = make_teacher(aggregator).features(images, [4]).maps[4]
    rounded = (
        make_teacher(randomized(VggtAggregator(tiny_vggt_config())).to(torch.bfloat16)).features(images, [4]).maps[4]
    )
    assert F.cosine_similarity(exact, rounded.float(), dim=-1).mean() > 0.999


def test_uint8_images_equal_images_in_unit_range(aggregator):
    images = (random_images(1, 2, 3, 60, 70) * 255).round().to(torch.uint8)
    ours = make_teacher(aggregator)
    assert torch.equal(ours.features(images, [1]).maps[1], ours.features(images.float() / 255, [1]).maps[1])


@pytest.mark.parametrize(
    ("resolution", "camera", "expected"),
    [
        ("teacher", (480, 640), (392, 518)),
        ("camera", (224, 224), (224, 224)),
        ("camera", (480, 640), (476, 644)),
        (280, (480, 640), (210, 280)),
        (300, (640, 480), (294, 224)),
    ],
)
def test_input_size_is_whole_patches_at_requested_resolution(resolution, camera, expected):
    with torch.device("meta"):
        teacher = make_teacher(VggtAggregator(VggtConfig(depth=1, patch_embed_depth=1)), resolution=resolution)
    assert teacher.input_size(*camera) == expected
    assert teacher.grid(*camera) == (expected[0] // 14, expected[1] // 14)


def test_pixels_are_resized_and_normalized(aggregator):
    images = random_images(2, 1, 3, 61, 60)
    resized = F.interpolate(images[:, 0], (84, 84), mode="bicubic", align_corners=False).clamp(0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((resized.permute(0, 2, 3, 1) - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(make_teacher(aggregator, resolution="teacher").normalize(images)[:, 0], expected)


def test_missing_camera_is_not_part_of_its_scene(aggregator):
    images, ours = random_images(5, 3, 3, 28, 42), make_teacher(aggregator)
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    found = ours.features(images, [1, 4], mask)
    assert found.grid == (2, 3)
    for sample, present in enumerate(mask):
        for layer, maps in found.maps.items():
            assert not maps[sample, ~present].any()
            if present.any():
                alone = ours.features(images[sample : sample + 1, present], [layer]).maps[layer]
                torch.testing.assert_close(maps[sample : sample + 1, present], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", [0, 5, -5])
def test_unknown_layer_raises(aggregator, layer):
    with pytest.raises(ValueError, match=rf"tiny has no layer {layer}: its 4 blocks are layers 1\.\.4, or -4\.\.-1"):
        make_teacher(aggregator).features(random_images(1, 1, 3, 28, 28), [1, layer])


def test_images_of_unsupported_shape_or_size_raise(aggregator):
    ours = make_teacher(aggregator)
    with pytest.raises(
        ValueError, match=r"images of shape \(batch, cameras, 3, height, width\), got \(1, 1, 4, 28, 28\)"
    ):
        ours.features(random_images(1, 1, 4, 28, 28), [1])
    with pytest.raises(ValueError, match="a camera of 28 x 6 pixels is smaller than one patch of tiny, 14 pixels"):
        ours.features(random_images(1, 1, 3, 6, 28), [1])
    for resolution in ("native", 13):
        with pytest.raises(ValueError, match='resolution must be "teacher", "camera" or a side'):
            make_teacher(aggregator, resolution=resolution)


def test_teacher_is_not_part_of_policy_modules(aggregator):
    policy = torch.nn.Module()
    setattr(policy, "teacher", make_teacher(aggregator))  # noqa: B010
    assert not list(policy.parameters()) and not policy.state_dict()


@pytest.mark.slow
def test_compiled_blocks_give_the_same_features(aggregator):
    images = random_images(1, 2, 3, 28, 42)
    expected = make_teacher(aggregator).features(images, [1, 4]).maps
    compiled = make_teacher(randomized(VggtAggregator(tiny_vggt_config())), compile=True)
    assert close(compiled.features(images, [1, 4]).maps, expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"img_size": 518, "patch_siz": 14}, "has no key 'patch_siz': did you mean 'patch_size'"),
        ({"depth": 0}, "depth in the configuration of a VGGT must be a positive integer, got 0"),
        ({"num_heads": 3}, "embed_dim=1024 must be a multiple of"),
    ],
)
def test_wrong_config_raises(values, message):
    with pytest.raises(ValueError, match=message):
        VggtConfig.from_dict(values)
