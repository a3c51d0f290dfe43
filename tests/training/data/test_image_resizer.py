"""Large images are resized before augmentation: the policy sees the same images, and steps need less time."""

import statistics
import time

import numpy as np
import pytest
import torch
from PIL import Image

from rocket_hf.modeling.image_resizing import resize_images
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny import character_tokenizer, tiny_config, tiny_statistics
from rocket_hf.tiny_dataset import write_tiny_dataset
from rocket_hf.training.data.image_resizer import ImageResizer
from rocket_hf.training.data.lerobot_data import RobotDataset
from rocket_hf.training.data.loader import make_loader
from rocket_hf.training.data.mixture import FrameRanges, MixtureOrder
from rocket_hf.training.recipe import AugmentationConfig, DataConfig, DatasetConfig
from rocket_hf.training.vla.model_inputs import ModelInputs

pytestmark = pytest.mark.needs_lerobot

METHODS = ("letterbox", "letterbox-top-left", "stretch")
SIZES = ((480, 640), (640, 480), (479, 641), (720, 1280), (1000, 1001))
ROUNDING = 0.5 / 255 + 1e-6


def random_image(size):
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_policy_sees_the_same_image_up_to_rounding(method, size):
    image, resizer = random_image(size), ImageResizer(224, method, "bilinear")
    resized = resizer(image)
    assert resized.shape[1:] == resizer.target_size(size) and resized.dtype == torch.uint8
    expected, found = (resize_images(each[None] / 255, 224, method, "bilinear") for each in (image, resized))
    assert (expected - found).abs().max() <= ROUNDING


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_bicubic_resizing_is_equal_to_pillows_and_to_the_processors(method, size):
    image, resizer = random_image(size), ImageResizer(224, method, "bicubic")
    resized = resizer(image)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
    reference = pillow.resize(resizer.target_size(size)[::-1], Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resized.permute(1, 2, 0).numpy(), np.array(reference))
    expected, found = (resize_images(each[None] / 255, 224, method, "bicubic") for each in (image, resized))
    assert torch.equal(expected, found)


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (256, 340), (100, 100)])
def test_images_that_are_not_large_remain_unchanged(size):
    image = random_image(size)
    assert ImageResizer(224, "letterbox", "bilinear")(image) is image


# In training


@pytest.fixture(scope="module")
def large_dataset(tmp_path_factory):
    cameras = {"front": (480, 640), "wrist": (480, 640)}
    return write_tiny_dataset(tmp_path_factory.mktemp("large") / "dataset", 2, 8, cameras)


def inputs_of_batches(folder, resizes, augmentation, method="letterbox", in_memory=True, side=224):
    """Return a function that reads a batch and prepares it for the policy, as a training step does."""
    config = tiny_config("pi0", cameras=["front", "wrist"])
    settings = {"resize": method, "max_prompt_length": 40}
    processor = RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config), **settings)
    processor.image_size = side
    resizer = ImageResizer.for_processor(processor, side) if resizes else None
    data = RobotDataset(DatasetConfig(id=str(folder)), config, in_memory=in_memory, resizer=resizer)
    order = MixtureOrder([FrameRanges([data.frame_range(episode) for episode in data.episodes])])
    loader = make_loader(
        [data], order, processor, config, DataConfig(workers=0, augmentation=augmentation), 0, 8, end_position=16
    )
    model_inputs = ModelInputs(config, processor, None, torch.device("cpu"))
    return lambda: [model_inputs.inputs(batch) for batch in loader]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_training_without_augmentation_sees_the_same_images(large_dataset, method, in_memory):
    before, after = (
        inputs_of_batches(large_dataset, resizes, AugmentationConfig(), method, in_memory)()
        for resizes in (False, True)
    )
    for (expected, images, _), (found, resized, _) in zip(before, after, strict=True):
        assert images[0].shape[-2:] == (480, 640) and resized[0].numel() < images[0].numel() / 4
        assert (expected["images"] - found["images"]).abs().max() <= ROUNDING
        for key in ("state", "actions", "noise", "time", "input_ids"):
            assert torch.equal(expected[key], found[key])


@pytest.mark.parametrize("method", METHODS)
def test_augmentation_shows_the_same_places_and_colors(large_dataset, method):
    augmentation = AugmentationConfig(
        crop_area=0.8, rotation=10, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05
    )
    before, after = (inputs_of_batches(large_dataset, resizes, augmentation, method)() for resizes in (False, True))
    for (expected, _, warp), (found, _, resized_warp) in zip(before, after, strict=True):
        torch.testing.assert_close(resized_warp, warp, rtol=0, atol=1e-6)
        difference = (expected["images"] - found["images"]).abs()
        assert difference.mean() < 1 / 255, f"{255 * difference.mean():.2f} levels"


def test_steps_with_large_images_in_memory_prepare_data_three_times_faster(large_dataset):
    augmentation = AugmentationConfig(crop_area=0.9, brightness=0.2, contrast=0.2, saturation=0.2)
    prepare = {resizes: inputs_of_batches(large_dataset, resizes, augmentation) for resizes in (False, True)}
    seconds = {False: [], True: []}
    for _ in range(5):
        for resizes, run in prepare.items():
            start = time.process_time()
            run()
            seconds[resizes].append(time.process_time() - start)
    ratio = statistics.median(seconds[False]) / statistics.median(seconds[True])
    print(f"data share of a step, before / after: {ratio:.1f}")
    assert ratio > 3
