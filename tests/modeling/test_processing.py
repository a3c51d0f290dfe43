"""Tests of the processor: image formats, prompts, normalization and wrong inputs."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from rocket_hf.modeling.normalization import Normalizer
from rocket_hf.modeling.processing_rocket import RocketProcessor, letterbox, stretch
from rocket_hf.tiny import character_tokenizer, tiny_config, tiny_statistics

from .conftest import random_model

CONFIG = tiny_config()


def create_processor(family: str = "pi0", **changes) -> RocketProcessor:
    config = tiny_config(family)
    return RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config), **changes)


def random_images(size: int = 2, height: int = 28, width: int = 28) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(0, 256, (size, 3, height, width), generator=draw, dtype=torch.uint8)
        for name in CONFIG.cameras
    }


def test_model_accepts_training_batch():
    processor = create_processor()
    batch = processor(
        images=random_images(), task=["a", "open the drawer"], state=torch.randn(2, 6),
        actions=torch.randn(2, 4, 5), action_is_pad=torch.zeros(2, 4, dtype=torch.bool),
    )  # fmt: skip
    assert batch["images"].shape == (2, *CONFIG.image_shape) and batch["images"].dtype == torch.float32
    assert batch["camera_mask"].all() and batch["input_ids"].shape == (2, 48)
    assert random_model(CONFIG)(**batch, targets=CONFIG.fake_targets()).losses["action/flow_matching"].isfinite()


def test_all_image_formats_give_same_pixels():
    processor = create_processor()
    image = random_images(1, 30, 40)["front"][0]
    channels_last = image.permute(1, 2, 0).contiguous()
    forms = [
        image,
        image[None],
        image / 255,
        channels_last.numpy(),
        channels_last.numpy() / np.float32(255),
        Image.fromarray(channels_last.numpy()),
    ]
    pixels = [
        processor(images={"front": form, "wrist": None}, task="a", state=torch.zeros(6))["images"] for form in forms
    ]
    for other in pixels[1:]:
        torch.testing.assert_close(other, pixels[0])


def test_resize_methods():
    image = torch.rand(1, 3, 20, 40)
    letterboxed, stretched = letterbox(image, 40), stretch(image, 40)
    assert letterboxed.shape == stretched.shape == (1, 3, 40, 40)
    assert not letterboxed[:, :, :10].any() and not letterboxed[:, :, 30:].any()
    torch.testing.assert_close(letterboxed[:, :, 10:30], image)
    constant = torch.full((1, 3, 63, 101), 0.25)
    torch.testing.assert_close(stretch(constant, 28), torch.full((1, 3, 28, 28), 0.25))
    with pytest.raises(ValueError, match="resize must be one of letterbox, letterbox-top-left, stretch, got 'crop'"):
        create_processor(resize="crop")


def test_state_is_required_only_by_policies_that_read_it():
    processor, arguments = create_processor(), {"images": random_images(), "task": "a"}
    batch = processor(**arguments)
    assert "state" not in batch
    with pytest.raises(ValueError, match="the batch lacks 'state'"):
        random_model(CONFIG).predict_action_chunk(**batch)
    with pytest.raises(ValueError, match="prompt of this policy contains the state: pass `state`"):
        create_processor("pi05")(**arguments)
    config = tiny_config("openvla", alignment=None)
    batch = create_processor("openvla")(images={config.cameras[0]: random_images()["front"]}, task="a")
    assert random_model(config).predict_action_chunk(**batch).isfinite().all()


def test_missing_cameras_are_black_and_masked():
    processor, images = create_processor(), random_images()
    batch = processor(images={"front": images["front"], "wrist": None}, task="a", state=torch.zeros(2, 6))
    assert batch["camera_mask"].tolist() == [[True, False]] * 2 and not batch["images"][:, 1].any()
    batch = processor(images=images, task="a", state=torch.zeros(2, 6), camera_mask={"wrist": [True, False]})
    assert batch["camera_mask"].tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {"front": random_images()["front"]}}, "the observation lacks the camera 'wrist'"),
        ({"images": random_images() | {"wrists": None}}, "this policy has no camera 'wrists': did you mean 'wrist'?"),
        ({"images": {"front": None, "wrist": None}}, "all cameras are None"),
        (
            {"images": random_images() | {"wrist": torch.rand(2, 28, 28)}},
            r"camera 'wrist': an image must be \(H, W, 3\)",
        ),
        (
            {"images": random_images() | {"wrist": random_images()["wrist"].float()}},
            r"camera 'wrist': a float image must lie in \[0, 1\]",
        ),
        ({"images": random_images() | {"wrist": random_images()["wrist"].int()}}, "must be uint8 or float"),
        ({"state": torch.zeros(2, 7)}, "the state has 7 dimensions, but the policy needs 6"),
        ({"actions": torch.zeros(2, 4, 4)}, "the action has 4 dimensions, but the policy needs 5"),
        ({"state": torch.zeros(3, 6), "task": ["a", "b"]}, "state has 3 samples, but there are images of 2"),
        ({"task": ["a", "b", "c"]}, "task has 3 samples, but there are images of 2"),
        ({"actions": torch.zeros(1, 4, 5)}, "actions has 1 samples, but there are images of 2"),
        ({"task": "x" * 60}, "a prompt has 62 tokens, but max_prompt_length is 48: shorten the task"),
    ],
)
def test_wrong_inputs_are_rejected(changes, message):
    arguments = {"images": random_images(), "task": "a", "state": torch.zeros(2, 6)} | changes
    with pytest.raises(ValueError, match=message):
        create_processor()(**arguments)


def test_prompts_equal_those_of_published_models():
    state = torch.tensor([-1.0, 0.0, 0.999, 0.5, -0.5, 1.0])
    assert create_processor("pi0").prompts([" open the_drawer\n"], state[None]) == ["open the drawer\n"]
    bins = np.digitize(state.numpy(), bins=np.linspace(-1, 1, 256 + 1)[:-1]) - 1  # as in openpi
    expected = f"Task: open the drawer, State: {' '.join(map(str, bins))};\nAction: "
    assert create_processor("pi05").prompts(["open the_drawer"], state[None]) == [expected]


def test_prompts_are_padded_to_same_length():
    processor = create_processor()
    batch = processor(images=random_images(), task=["a", "open"], state=torch.zeros(2, 6))
    assert batch["attention_mask"].sum(1).tolist() == [3, 6]  # <bos>, the letters, the line break
    assert processor.tokenizer.decode(batch["input_ids"][1][1:6]).replace(" ", "") == "open\n"


@pytest.mark.parametrize("mode", ["identity", "mean_std", "min_max", "quantile"])
def test_unnormalize_inverts_normalize(mode):
    normalizer = Normalizer("action", 5, mode, tiny_statistics(CONFIG)["action"])
    raw = torch.randn(2, 4, 5)
    torch.testing.assert_close(normalizer.unnormalize(normalizer.normalize(raw)), raw)


def test_normalization_of_known_values():
    statistics = {"mean": [1.0, 0.0], "std": [2.0, 1.0], "q01": [-2.0, 0.0], "q99": [2.0, 1.0], "mask": [True, False]}
    raw = torch.tensor([[3.0, 0.75]])
    assert Normalizer("action", 2, "mean_std", statistics).normalize(raw).tolist() == [[1.0, 0.75]]
    assert Normalizer("action", 2, "quantile", statistics).normalize(raw).tolist() == [[1.5, 0.75]]
    assert Normalizer("action", 2, "quantile", statistics).unnormalize(torch.tensor([[-1.0, 1.0]])).tolist() == [
        [-2.0, 1.0]
    ]


@pytest.mark.parametrize(
    ("mode", "statistics", "message"),
    [
        (
            "quantile",
            {"mean": [0.0], "std": [1.0]},
            "needs the statistic 'q01' of the action; available: mean, std",
        ),
        ("mean_std", {}, "needs the statistic 'mean' of the action; available: none"),
        ("mean_std", {"mean": [0.0, 0.0], "std": [1.0]}, "'mean' of the action has 2 values, but action_dim is 1"),
        ("mean_std", {"mean": [0.0], "std": [1.0], "mask": [True, True]}, "'mask' of the action has 2 values"),
        ("z", {}, "action_normalization must be one of identity, mean_std, min_max, quantile, got 'z'"),
    ],
)
def test_missing_and_misshapen_statistics_are_rejected(mode, statistics, message):
    with pytest.raises(ValueError, match=message):
        Normalizer("action", 1, mode, statistics)


def test_loaded_processor_equals_saved_processor(family, tmp_path):
    processor = create_processor(family, resize="stretch", action_normalization="quantile")
    processor.save_pretrained(tmp_path)
    loaded = RocketProcessor.from_pretrained(tmp_path)
    images = random_images(2, 40, 60)
    arguments = {
        "images": {name: images[name] for name in processor.cameras},
        "task": "open",
        "state": torch.randn(2, 6),
        "actions": torch.randn(2, 4, 5),
    }
    expected, actual = processor(**arguments), loaded(**arguments)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[key], actual[key]) for key in expected)
    assert loaded.statistics == processor.statistics
    assert AutoTokenizer.from_pretrained(tmp_path)("a").input_ids == processor.tokenizer("a").input_ids
