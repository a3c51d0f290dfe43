"""Alignment targets on the student's grid: image windows, live and cached targets, crops, and zero targets."""

from collections.abc import Callable

import pytest
import torch
from accelerate import PartialState

from rocket_hf.errors import UserError
from rocket_hf.modeling.image_resizing import RESIZE_METHODS
from rocket_hf.modeling.policy_interface import weighted_loss
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.scene import scene_images
from rocket_hf.training.recipe import VLARecipe
from rocket_hf.training.recipe_files import read_vla_recipe
from rocket_hf.training.vla.model_inputs import ModelInputs
from rocket_hf.training.vla.resources import TrainingResources, load_policy, load_training_resources
from rocket_hf.training.vla.targets import LiveTargets, image_window
from rocket_hf.training.vla.task import training_loader

from ..conftest import set_options

pytestmark = pytest.mark.needs_lerobot

CPU = torch.device("cpu")
CROPS = {"data__augmentation__crop_area": 0.6, "data__augmentation__rotation": 10}


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (50, 50), (37, 101)])
@pytest.mark.parametrize("resize", RESIZE_METHODS)
def test_image_window_matches_the_processor(resize, size):
    """The window maps the center of a bright blob in the policy's square image to its position in the camera image."""
    side, (height, width) = 56, size
    top, left, bottom, right = image_window(resize, size, side)
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    for y, x in [(0.3, 0.3), (0.7, 0.4), (0.5, 0.65)]:
        blob = torch.exp(-((rows[:, None] - y * height) ** 2 + (columns - x * width) ** 2) / (0.08 * height) ** 2)
        square = RESIZE_METHODS[resize](blob.expand(1, 3, -1, -1), side)[0, 0]
        centers = (torch.arange(side) + 0.5) / side
        found_y = (square.sum(1) @ centers / square.sum()).item()
        found_x = (square.sum(0) @ centers / square.sum()).item()
        assert top + found_y * (bottom - top) == pytest.approx(y, abs=0.6 / side)
        assert left + found_x * (right - left) == pytest.approx(x, abs=0.6 / side)


@pytest.mark.parametrize(("size", "bars"), [((48, 64), (7, 0)), ((64, 48), (0, 7))])
def test_bars_of_a_letterbox_are_outside_of_the_image(size, bars):
    top, left, bottom, right = image_window("letterbox", size, 56)
    rows, columns = (56 - 2 * bar for bar in bars)
    assert (top, bottom) == pytest.approx((-bars[0] / rows, 1 + bars[0] / rows))
    assert (left, right) == pytest.approx((-bars[1] / columns, 1 + bars[1] / columns))


# Live and cached targets


RecipeAndResources = tuple[VLARecipe, TrainingResources]


@pytest.fixture(scope="module")
def load(image_dataset, teacher, policies, caches) -> Callable[..., RecipeAndResources]:
    def load_(storage: str | None = None, *more: str, family: str = "smolvla", **changes) -> RecipeAndResources:
        required = {
            "policy": str(policies(family)),
            "data__datasets__0__id": str(image_dataset),
            "teacher__name": str(teacher),
        }
        if storage is not None:
            required["teacher__caches"] = [str(caches(storage, *more))]
        recipe = read_vla_recipe("tiny", set_options(**required, data__validation=0, **changes)[1::2])
        return recipe, load_training_resources(recipe, CPU)

    return load_


def first_batch(recipe: VLARecipe, resources: TrainingResources) -> dict:
    return next(iter(training_loader(resources, recipe, PartialState(cpu=True), 8, 0)))


def first_targets(
    recipe: VLARecipe, resources: TrainingResources
) -> tuple[dict, list[torch.Tensor], torch.Tensor | None, dict]:
    model_inputs = ModelInputs(resources.config, resources.processor, resources.targets, CPU)
    raw = first_batch(recipe, resources)
    _, images, warp = model_inputs.inputs(raw)
    return raw, images, warp, model_inputs.targets(raw, images, warp)


def cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    has_target = other.norm(dim=-1) > 0  # Patches in the bars of a letterbox have no target.
    return torch.cosine_similarity(one, other, dim=-1)[has_target]


@pytest.mark.parametrize("family", ["smolvla", "openvla-oft"])
def test_cached_targets_equal_live_targets(load, family):
    *_, live = first_targets(*load(family=family))
    *_, rounded = first_targets(*load("bf16", family=family))
    *_, bytes_ = first_targets(*load("int8", family=family))
    assert live.keys() == rounded.keys() == bytes_.keys() == {2, 3, 4}
    for layer, target in live.items():
        assert target.shape[:2] == (8, 2) and target.shape == rounded[layer].shape
        torch.testing.assert_close(rounded[layer], target, atol=2**-8 * target.abs().max().item(), rtol=0)
        assert cosine(bytes_[layer], target).mean() >= 0.999


def test_projected_targets_equal_projected_live_targets_and_keep_the_reported_variance(load, caches):
    *_, live = first_targets(*load())
    raw, _, _, cached = first_targets(*load("projected", "--width", "8"))
    cache = FeatureCache(caches("projected", "--width", "8"))
    full_cache, collate = FeatureCache(caches("bf16")), torch.utils.data.default_collate
    features = full_cache.decode(collate([full_cache.read(index) for index in range(len(full_cache))])).maps
    for layer, share in zip((2, 3, 4), cache.manifest.kept, strict=True):
        projection = cache.projection(layer)
        expected = live[layer] @ projection
        torch.testing.assert_close(cached[layer], expected, atol=2**-7 * expected.abs().max().item(), rtol=0)
        kept = (features[layer] @ projection).square().sum() / features[layer].square().sum()
        assert kept.item() == pytest.approx(share, abs=0.01)
    assert raw["features"]


def test_cached_targets_of_a_crop_equal_live_targets_of_the_original_at_its_positions(load):
    recipe, resources = load("bf16", **CROPS)
    raw, images, warp, cached = first_targets(recipe, resources)
    live = load(**CROPS)[1].targets
    assert isinstance(live, LiveTargets) and warp is not None
    assert not torch.allclose(images[0], raw["images"][0] / 255, atol=0.1)
    features = live.teacher.features(scene_images(raw["images"], live.teacher), [2, 3, 4])
    for layer, target in live.registration(features, warp).items():
        torch.testing.assert_close(cached[layer], target, atol=2**-8 * target.abs().max().item(), rtol=0)
    uncropped = live.registration(features)[2]
    assert not torch.allclose(cached[2], uncropped, atol=2**-8 * uncropped.abs().max().item(), rtol=0)


def test_live_targets_of_a_crop_equal_the_teachers_features_of_the_crop(load):
    recipe, resources = load(**CROPS)
    _, images, warp, targets = first_targets(recipe, resources)
    live = resources.targets
    assert isinstance(live, LiveTargets) and warp is not None
    expected = live.registration(live.teacher.features(scene_images(images, live.teacher), [2, 3, 4]))
    assert all(torch.equal(targets[layer], expected[layer]) for layer in expected)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_the_cached_features_of_their_frames(load, workers):
    without_workers, with_workers = (
        iter(training_loader(resources, recipe, PartialState(cpu=True), 8, 0))
        for recipe, resources in (load("int8", **CROPS), load("int8", data__workers=workers, **CROPS))
    )
    for one, other in zip(without_workers, with_workers, strict=True):
        assert one["features"].keys() == other["features"].keys()
        assert torch.equal(one["index"], other["index"])
        for name, rows in one["features"].items():
            assert torch.equal(rows, other["features"][name])


# Zero targets and missing cameras


def test_zero_targets_have_zero_gradients_and_do_not_change_the_policys(load):
    recipe, resources = load()
    model_inputs = ModelInputs(resources.config, resources.processor, resources.targets, CPU)
    model = load_policy(resources.folder, resources.config.alignment, recipe).train()
    batch, _, _ = model_inputs.inputs(first_batch(recipe, resources))
    targets = model_inputs.zero_targets(batch)
    assert targets is not None and not any(target.any() for target in targets.values())
    losses = model(**batch, targets=targets).losses
    weighted_loss(losses, 0.0).backward()
    for name, weight in model.alignment_head.named_parameters():
        assert weight.grad is not None and not weight.grad.any(), name
    grads = {name: weight.grad for name, weight in model.policy.named_parameters() if weight.grad is not None}
    without = load_policy(resources.folder, None, recipe).train()
    torch.stack(list(without(**batch).losses.values())).sum().backward()
    for name, weight in without.policy.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(grads[name], weight.grad, atol=1e-7, rtol=1e-5)


def test_feature_cache_of_a_missing_camera_is_refused(load):
    with pytest.raises(UserError, match=r"lacks a camera of the policy, so the feature cache .* cannot be used"):
        load("int8", data__datasets__0__cameras={"wrist": ""})
