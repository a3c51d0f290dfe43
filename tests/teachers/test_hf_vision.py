"""Vision encoders of transformers as teachers, compared with their own hidden states, for each family."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PreTrainedModel,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
    YolosConfig,
    YolosModel,
)

from rocket_hf import load_teacher
from rocket_hf.errors import UserError
from rocket_hf.teachers.hf_vision import HFVisionTeacher

DEPTH, WIDTH, PATCH, SIDE = 3, 24, 8, 48
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": PATCH,
    "image_size": SIDE,
}
DINO = {**SIZES, "layerscale_value": 0.7}
TEXT = {"hidden_size": 16, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "vocab_size": 9}
DEPTH_ANYTHING = {
    "reassemble_hidden_size": WIDTH,
    "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 8,
    "head_hidden_size": 8,
    "patch_size": PATCH,
}


def depth_anything() -> PreTrainedModel:
    backbone = Dinov2Config(**DINO, out_indices=[0, 1, 2, 3], apply_layernorm=True, reshape_hidden_states=False)
    return DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=backbone, **DEPTH_ANYTHING))


def siglip2() -> PreTrainedModel:
    vision = {key: value for key, value in SIZES.items() if key != "image_size"} | {"num_patches": 36}
    return Siglip2Model(Siglip2Config(vision_config=vision, text_config=TEXT))


FAMILIES = {
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**DINO)), 1),
    "registers": (lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, num_register_tokens=3)), 4),
    "dinov3": (lambda: DINOv3ViTModel(DINOv3ViTConfig(**DINO, num_register_tokens=2)), 3),
    "siglip": (lambda: SiglipModel(SiglipConfig(vision_config=SIZES, text_config=TEXT)), 0),
    "siglip2": (siglip2, 0),
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES)), 1),
    "vit": (lambda: ViTModel(ViTConfig(**SIZES)), 1),
    "depth-anything": (depth_anything, 1),
}


def save(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Save the model with random weights, none of them zero or one, and with the statistics of its pixels."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    model.eval().save_pretrained(folder)
    settings = {"do_normalize": True, "image_mean": MEAN, "image_std": STD, "size": {"height": SIDE, "width": SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> tuple[str, PreTrainedModel, HFVisionTeacher]:
    folder = tmp_path_factory.mktemp(request.param)
    model = save(FAMILIES[request.param][0](), folder)
    teacher = load_teacher(str(folder))
    assert isinstance(teacher, HFVisionTeacher)
    return request.param, model, teacher


def random_images(height: int, width: int) -> Tensor:
    """Draw two samples of two cameras, uint8."""
    shape = (2, 2, 3, height, width)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@torch.no_grad()
def reference_streams(name: str, model: PreTrainedModel, images: Tensor) -> list[Tensor]:
    """Return the residual stream (N, tokens, C) after each block of the whole model, with class and register tokens."""
    encoder = {"siglip": "vision_model", "siglip2": "vision_model", "depth-anything": "backbone"}.get(name, "")
    tower = model.get_submodule(encoder)
    frames = images.flatten(0, 1) / 255
    pixels = (frames - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    inputs: dict[str, Any] = {"pixel_values": pixels}
    if name in ("siglip", "clip", "vit"):
        inputs["interpolate_pos_encoding"] = True
    if name == "siglip2":
        processor = Siglip2ImageProcessor(do_resize=False, image_mean=MEAN, image_std=STD, patch_size=PATCH)
        processed = processor(
            list(images.flatten(0, 1)), max_num_patches=images.shape[-2] * images.shape[-1] // PATCH**2
        )
        inputs = dict(processed.convert_to_tensors("pt"))
        inputs["attention_mask"] = inputs.pop("pixel_attention_mask")
    streams: list[Tensor] = []
    lists = [part for part in tower.modules() if isinstance(part, nn.ModuleList) and len(part) == DEPTH]
    hooks = [block.register_forward_hook(lambda block, inputs, output: streams.append(output)) for block in lists[0]]
    output = tower(**inputs, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    if output.hidden_states is not None:  # the hooks must return what transformers calls hidden states
        for stream, hidden in zip(streams[:-1], output.hidden_states[1:-1], strict=True):
            assert torch.equal(stream, hidden)
    return streams


@pytest.mark.parametrize("size", [(SIDE, SIDE), (32, 56)])
def test_layers_equal_residual_stream_after_each_block(family, size):
    name, model, teacher = family
    images, prefix = random_images(*size), FAMILIES[name][1]
    expected = reference_streams(name, model, images)
    layers = list(range(1, DEPTH + 1))
    found = teacher.features(images, [*layers, -1])
    assert found.grid == (size[0] // PATCH, size[1] // PATCH)
    for layer in layers:
        stream = expected[layer - 1][:, prefix:].unflatten(0, (2, 2))
        torch.testing.assert_close(found.maps[layer], stream, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.maps[-1], found.maps[DEPTH])


def test_card_is_read_from_files(family):
    name, _, teacher = family
    card = teacher.card
    assert (card.depth, card.width, card.patch_size, card.image_size) == (DEPTH, WIDTH, PATCH, SIDE)
    assert (card.mean, card.std) == (tuple(MEAN), tuple(STD))
    assert card.name.startswith(name) and card.license == "unknown"


def test_teacher_stops_at_deepest_requested_layer(family):
    _, _, teacher = family
    runs: list[int] = []
    hooks = [
        block.register_forward_hook(lambda block, inputs, output, number=number: runs.append(number))
        for number, block in enumerate(teacher.blocks, start=1)
    ]
    found = teacher.features(random_images(SIDE, SIDE), [2])
    for hook in hooks:
        hook.remove()
    assert runs == [1, 2] and list(found.maps) == [2]
    assert len(teacher.encoder.get_submodule(teacher.list_name)) == DEPTH


def test_missing_camera_has_zero_features_and_changes_no_other(family):
    _, _, teacher = family
    images = random_images(SIDE, SIDE)
    every = teacher.features(images, [3]).maps[3]
    mask = torch.tensor([[True, False], [True, True]])
    some = teacher.features(images, [3], mask).maps[3]
    assert not some[0, 1].any()
    torch.testing.assert_close(some[mask], every[mask], atol=1e-4, rtol=1e-4)


def test_bfloat16_features_are_close_to_float32(family, tmp_path):
    _, model, exact = family
    save(model, tmp_path)
    rounded = load_teacher(str(tmp_path), dtype="bfloat16")
    ours, theirs = (each.features(random_images(32, 56), [2]).maps[2] for each in (rounded, exact))
    assert ours.dtype == torch.bfloat16 and not ours.requires_grad
    assert torch.cosine_similarity(ours.float(), theirs, dim=-1).mean() > 0.99


@pytest.mark.slow
def test_compiled_blocks_give_the_same_features(family, tmp_path):
    _, model, plain = family
    save(model, tmp_path)
    compiled = load_teacher(str(tmp_path), compile=True)
    for layers in ([1, 3], [2]):
        ours, theirs = (each.features(random_images(SIDE, SIDE), layers).maps for each in (compiled, plain))
        for layer in layers:
            torch.testing.assert_close(ours[layer], theirs[layer], atol=1e-4, rtol=1e-4)


# Unsupported models


def test_encoder_whose_tokens_are_not_patches_row_by_row_raises(tmp_path):
    """YOLOS appends detection tokens to its patches. Counting alone would mistake them for registers."""
    sizes = {**SIZES, "image_size": [SIDE, SIDE], "num_detection_tokens": 5, "use_mid_position_embeddings": False}
    save(YolosModel(YolosConfig(**sizes)), tmp_path)
    with pytest.raises(UserError, match=r"\(yolos\) cannot be a teacher: its tokens are not class and register"):
        load_teacher(str(tmp_path))


def test_encoder_with_several_scales_raises(tmp_path):
    save(SwinModel(SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], image_size=32, patch_size=4)), tmp_path)
    with pytest.raises(UserError, match=r"cannot be a teacher: its configuration \(swin\) has no num_hidden_layers"):
        load_teacher(str(tmp_path))


def test_encoder_with_four_channels_raises(tmp_path):
    save(Dinov2Model(Dinov2Config(**DINO, num_channels=4)), tmp_path)
    with pytest.raises(UserError, match="it expects 4 channels, and cameras have 3"):
        load_teacher(str(tmp_path))


class FixedSizeViT(ViTModel):
    """Model whose forward does not accept images of other sizes."""

    def forward(self, pixel_values: Tensor) -> Any:
        return super().forward(pixel_values)


def test_encoder_of_fixed_size_accepts_only_that_size(tmp_path):
    whole = save(ViTModel(ViTConfig(**SIZES)), tmp_path)
    card = load_teacher(str(tmp_path)).card
    teacher = HFVisionTeacher(FixedSizeViT.from_pretrained(tmp_path), card, "teacher")
    images = random_images(96, 96)
    assert teacher.features(images, [2]).grid == (6, 6)
    small = random_images(SIDE, SIDE)
    expected = reference_streams("vit", whole, small)[1][:, 1:].unflatten(0, (2, 2))
    torch.testing.assert_close(teacher.features(small, [2]).maps[2], expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match=r"accepts only images of 48 x 48 pixels, not of 48 x 32: choose resolution="):
        teacher.features(random_images(64, 96), [1])
