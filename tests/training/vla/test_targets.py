"""The teacher's features at the places that the student sees, live and from a cache."""

from collections.abc import Callable

import pytest
import torch
from accelerate import PartialState

from rocket_hf.modeling.policy_interface import weighted_loss
from rocket_hf.modeling.processing_rocket import RESIZES
from rocket_hf.teachers.feature_cache import FeatureCache
from rocket_hf.teachers.scene import scene_images
from rocket_hf.training.recipe import VLARecipe
from rocket_hf.training.recipe_files import read_recipe
from rocket_hf.training.vla.model_inputs import ModelInputs
from rocket_hf.training.vla.resources import TrainingResources, load_policy, load_training_resources
from rocket_hf.training.vla.targets import LiveTargets, picture_window
from rocket_hf.training.vla.task import training_loader

from ..conftest import settings

pytestmark = pytest.mark.needs_lerobot

CPU = torch.device("cpu")
CROPS = {"data__augmentation__crop_area": 0.6, "data__augmentation__rotation": 10}


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (50, 50), (37, 101)])
@pytest.mark.parametrize("resize", RESIZES)
def test_a_window_tells_where_the_processor_puts_a_place(resize, size):
    """A bright blob at a place of the picture: its center in the policy's square image is that place, by the window."""
    side, (height, width) = 56, size
    top, left, bottom, right = picture_window(resize, size, side)
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    for y, x in [(0.3, 0.3), (0.7, 0.4), (0.5, 0.65)]:
        blob = torch.exp(-((rows[:, None] - y * height) ** 2 + (columns - x * width) ** 2) / (0.08 * height) ** 2)
        square = RESIZES[resize](blob.expand(1, 3, -1, -1), side)[0, 0]
        centers = (torch.arange(side) + 0.5) / side
        seen_y = (square.sum(1) @ centers / square.sum()).item()
        seen_x = (square.sum(0) @ centers / square.sum()).item()
        assert top + seen_y * (bottom - top) == pytest.approx(y, abs=0.6 / side)
        assert left + seen_x * (right - left) == pytest.approx(x, abs=0.6 / side)


@pytest.mark.parametrize(("size", "bars"), [((48, 64), (7, 0)), ((64, 48), (0, 7))])
def test_the_bars_of_a_letterbox_lie_outside_of_the_picture(size, bars):
    top, left, bottom, right = picture_window("letterbox", size, 56)
    rows, columns = (56 - 2 * bar for bar in bars)
    assert (top, bottom) == pytest.approx((-bars[0] / rows, 1 + bars[0] / rows))
    assert (left, right) == pytest.approx((-bars[1] / columns, 1 + bars[1] / columns))


# Live and cached


Opened = tuple[VLARecipe, TrainingResources]


@pytest.fixture(scope="module")
def opened(stored, teacher, policies, caches) -> Callable[..., Opened]:
    def open_(storage: str | None = None, *more: str, family: str = "smolvla", **changes) -> Opened:
        given = {"policy": str(policies(family)), "data__datasets__0__id": str(stored), "teacher__name": str(teacher)}
        if storage is not None:
            given["teacher__caches"] = [str(caches(storage, *more))]
        recipe = read_recipe("tiny", settings(**given, data__validation=0, **changes)[1::2])
        return recipe, load_training_resources(recipe, CPU)

    return open_


def first_batch(recipe: VLARecipe, sources: TrainingResources) -> dict:
    return next(iter(training_loader(sources, recipe, PartialState(cpu=True), 8, 0)))


def prepared(
    recipe: VLARecipe, sources: TrainingResources
) -> tuple[dict, list[torch.Tensor], torch.Tensor | None, dict]:
    model_inputs = ModelInputs(sources.config, sources.processor, sources.targets, CPU)
    raw = first_batch(recipe, sources)
    _, pictures, warp = model_inputs.inputs(raw)
    return raw, pictures, warp, model_inputs.targets(raw, pictures, warp)


def cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    shown = other.norm(dim=-1) > 0  # patches of a letterbox's bars have no target
    return torch.cosine_similarity(one, other, dim=-1)[shown]


@pytest.mark.parametrize("family", ["smolvla", "openvla-oft"])
def test_cached_targets_are_the_live_ones(opened, family):
    *_, live = prepared(*opened(family=family))
    *_, rounded = prepared(*opened("bf16", family=family))
    *_, bytes_ = prepared(*opened("int8", family=family))
    assert live.keys() == rounded.keys() == bytes_.keys() == {2, 3, 4}
    for layer, target in live.items():
        assert target.shape[:2] == (8, 2) and target.shape == rounded[layer].shape
        torch.testing.assert_close(rounded[layer], target, atol=2**-8 * target.abs().max().item(), rtol=0)
        assert cosine(bytes_[layer], target).mean() >= 0.999


def test_projected_targets_are_the_live_ones_projected_and_keep_the_printed_share(opened, caches):
    *_, live = prepared(*opened())
    raw, _, _, cached = prepared(*opened("projected", "--width", "8"))
    cache = FeatureCache(caches("projected", "--width", "8"))
    whole, part = FeatureCache(caches("bf16")), torch.utils.data.default_collate
    features = whole.decode(part([whole.read(index) for index in range(len(whole))])).maps
    for layer, share in zip((2, 3, 4), cache.manifest.kept, strict=True):
        projection = cache.projection(layer)
        wanted = live[layer] @ projection
        torch.testing.assert_close(cached[layer], wanted, atol=2**-7 * wanted.abs().max().item(), rtol=0)
        kept = (features[layer] @ projection).square().sum() / features[layer].square().sum()
        assert kept.item() == pytest.approx(share, abs=0.01)
    assert raw["features"]


def test_of_a_crop_cached_targets_are_the_live_ones_of_the_original_at_its_places(opened):
    recipe, sources = opened("bf16", **CROPS)
    raw, pictures, warp, cached = prepared(recipe, sources)
    live = opened(**CROPS)[1].targets
    assert isinstance(live, LiveTargets) and warp is not None
    assert not torch.allclose(pictures[0], raw["images"][0] / 255, atol=0.1)
    features = live.teacher.features(scene_images(raw["images"], live.teacher), [2, 3, 4])
    for layer, target in live.registration(features, warp).items():
        torch.testing.assert_close(cached[layer], target, atol=2**-8 * target.abs().max().item(), rtol=0)
    still = live.registration(features)[2]
    assert not torch.allclose(cached[2], still, atol=2**-8 * still.abs().max().item(), rtol=0)


def test_live_targets_of_a_crop_are_those_of_the_crop(opened):
    recipe, sources = opened(**CROPS)
    _, pictures, warp, targets = prepared(recipe, sources)
    live = sources.targets
    assert isinstance(live, LiveTargets) and warp is not None
    expected = live.registration(live.teacher.features(scene_images(pictures, live.teacher), [2, 3, 4]))
    assert all(torch.equal(targets[layer], expected[layer]) for layer in expected)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_the_rows_of_the_frames_that_they_read(opened, workers):
    alone, shared = (
        iter(training_loader(sources, recipe, PartialState(cpu=True), 8, 0))
        for recipe, sources in (opened("int8", **CROPS), opened("int8", data__workers=workers, **CROPS))
    )
    for one, other in zip(alone, shared, strict=True):
        assert one["features"].keys() == other["features"].keys()
        assert torch.equal(one["index"], other["index"])
        for name, rows in one["features"].items():
            assert torch.equal(rows, other["features"][name])


# Without targets


def test_where_alignment_counts_nothing_targets_are_zeros_and_so_are_gradients(opened):
    recipe, sources = opened()
    model_inputs = ModelInputs(sources.config, sources.processor, sources.targets, CPU)
    model = load_policy(sources.folder, sources.config.alignment, recipe).train()
    batch, _, _ = model_inputs.inputs(first_batch(recipe, sources))
    targets = model_inputs.zero_targets(batch)
    assert targets is not None and not any(target.any() for target in targets.values())
    losses = model(**batch, targets=targets).losses
    weighted_loss(losses, 0.0).backward()
    for name, weight in model.alignment_head.named_parameters():
        assert weight.grad is not None and not weight.grad.any(), name
    grads = {name: weight.grad for name, weight in model.policy.named_parameters() if weight.grad is not None}
    without = load_policy(sources.folder, None, recipe).train()
    torch.stack(list(without(**batch).losses.values())).sum().backward()
    for name, weight in without.policy.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(grads[name], weight.grad, atol=1e-7, rtol=1e-5)


def test_a_camera_that_is_absent_has_no_cached_features(opened):
    with pytest.raises(ValueError, match="lacks a camera, so its features cannot come from"):
        opened("int8", data__datasets__0__cameras={"wrist": ""})
