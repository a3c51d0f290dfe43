"""Tests of the processor: image formats, prompts, normalization and wrong inputs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from rocket_hf.errors import UserError
from rocket_hf.modeling.finite_checks import check_image_range
from rocket_hf.modeling.image_resizing import letterbox, pil_bicubic, stretch
from rocket_hf.modeling.normalization import Normalizer
from rocket_hf.modeling.processing_rocket import RocketProcessor
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


SIZES = [
    (480, 640, 224),
    (256, 256, 224),
    (97, 131, 224),
    (33, 17, 64),
    (10, 300, 28),
    (1, 1, 14),
    (1, 90, 28),
    (64, 64, 64),
]


@pytest.mark.parametrize(("height", "width", "side"), SIZES)
@pytest.mark.parametrize("content", ["noise", "edges", "grid"])
def test_bicubic_resizing_equals_pillow(height, width, side, content):
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if content == "edges":
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)
    if content == "grid":  # of 3 x 3 pixels: half of the results lie exactly between two levels
        black = (np.arange(height)[:, None] // 3 + np.arange(width) // 3) % 2 == 0
        pixels = np.where(black[..., None], 0, 255).repeat(3, axis=-1).astype(np.uint8)
    expected = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    resized = stretch(images, side, pil_bicubic)
    torch.testing.assert_close(resized[0].permute(1, 2, 0) * 255, torch.from_numpy(np.array(expected)).float())


def test_openvla_processor_resizes_images_of_all_types_as_pillow():
    config = tiny_config("openvla")
    processor = create_processor("openvla")
    image = random_images(1, 45, 60)["front"][0].permute(1, 2, 0).numpy()
    expected = np.array(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC))
    for form in (image, image / np.float32(255), Image.fromarray(image), torch.from_numpy(image)):
        pixels = processor(images={config.cameras[0]: form}, task="a")["images"][0, 0]
        torch.testing.assert_close(pixels.permute(1, 2, 0) * 255, torch.from_numpy(expected).float())
    bilinear = create_processor("openvla", interpolation="bilinear")(images={config.cameras[0]: image}, task="a")
    assert not torch.allclose(bilinear["images"][0, 0], pixels, atol=1 / 255)
    with pytest.raises(ValueError, match="interpolation must be one of bilinear, bicubic, got 'lanczos'"):
        create_processor("openvla", interpolation="lanczos")


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
        ({"state": torch.tensor([[0.0] * 5 + [torch.nan], [0.0] * 6])}, "the input 'state' is not finite"),
        ({"state": torch.full((2, 6), torch.inf)}, "the input 'state' is not finite"),
        ({"actions": torch.full((2, 4, 5), torch.nan)}, "the input 'action' is not finite"),
        (
            {"images": random_images() | {"wrist": torch.full((2, 3, 28, 28), torch.nan)}},
            "camera 'wrist': .* not finite",
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
    assert create_processor("pi0").prompts([" open the_drawer\n"], state[None]) == [" open the_drawer\n"]
    bins = np.digitize(state.numpy(), bins=np.linspace(-1, 1, 256 + 1)[:-1]) - 1  # as in openpi
    expected = f"Task: open the drawer, State: {' '.join(map(str, bins))};\nAction: "
    assert create_processor("pi05").prompts(["open the_drawer"], state[None]) == [expected]


TASKS = ["open the_drawer", " open the_drawer \n", "open\nthe_drawer", "open\n\n", "Put the RED_cup away.", "_", ""]


@pytest.mark.needs_lerobot
@pytest.mark.parametrize("family", ["pi0", "pi05", "smolvla"])
def test_prompts_equal_those_of_lerobot(family):
    """Compare with the prompt steps of lerobot's own preprocessors, for tasks with underscores and line breaks."""
    from lerobot.policies.pi0.processor_pi0 import Pi0NewLineProcessor
    from lerobot.policies.pi05.processor_pi05 import Pi05PrepareStateTokenizerProcessorStep
    from lerobot.processor import NewLineTaskProcessorStep, TransitionKey

    steps = {
        "pi0": Pi0NewLineProcessor, "pi05": Pi05PrepareStateTokenizerProcessorStep, "smolvla": NewLineTaskProcessorStep,
    }  # fmt: skip
    state = torch.rand(len(TASKS), 6) * 2 - 1
    transition = {
        TransitionKey.OBSERVATION: {"observation.state": state},
        TransitionKey.COMPLEMENTARY_DATA: {"task": list(TASKS)},
    }
    expected = steps[family]()(transition)[TransitionKey.COMPLEMENTARY_DATA]["task"]
    assert create_processor(family).prompts(TASKS, state) == expected


def test_processor_without_task_text_cleans_tasks_as_version_0_1_0(tmp_path):
    create_processor("pi0").save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    settings = json.loads(path.read_text())
    assert settings["task_text"] == "unchanged"
    del settings["task_text"], settings["interpolation"], settings["clip_normalized"]
    path.write_text(json.dumps(settings))
    loaded = RocketProcessor.from_pretrained(tmp_path)
    assert loaded.prompts([" open the_drawer\n"], None) == ["open the drawer\n"]
    assert (loaded.interpolation, loaded.clip_normalized) == ("bilinear", False)


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


@pytest.mark.parametrize(("mode", "low", "high"), [("min_max", "min", "max"), ("quantile", "q01", "q99")])
def test_clipped_normalization_equals_public_code_of_openvla(mode, low, high):
    """The expected values are the formula of the public code, in NumPy; masked dimensions stay unchanged there."""
    statistics = tiny_statistics(CONFIG)["action"] | {"mask": [True, True, True, True, False]}
    raw = np.random.default_rng(0).normal(0, 4, (64, 5)).astype(np.float32)
    first, last = (np.array(statistics[key], dtype=np.float32) for key in (low, high))
    clipped = np.clip(2 * (raw - first) / (last - first + 1e-8) - 1, -1, 1)
    expected = np.where(statistics["mask"], clipped, raw)
    assert np.abs(clipped).max() == 1 and np.abs(expected[:, 4]).max() > 1
    normalizer = Normalizer("action", 5, mode, statistics, clip=True)
    torch.testing.assert_close(normalizer.normalize(torch.from_numpy(raw)), torch.from_numpy(expected))
    unclipped = Normalizer("action", 5, mode, statistics).normalize(torch.from_numpy(raw))
    assert unclipped[:, :4].abs().max() > 1


def test_only_ranges_are_clipped():
    raw = torch.full((1, 5), 100.0)
    normalizer = Normalizer("action", 5, "mean_std", tiny_statistics(CONFIG)["action"], clip=True)
    assert (normalizer.normalize(raw).abs() > 1).all()


def test_clipping_of_the_configuration_applies_to_states_and_training_actions():
    config = tiny_config("openvla-oft", clip_normalized=True, state_normalization="quantile")
    config = type(config).from_dict(config.to_dict(), action_normalization="quantile")
    processor = RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config))
    encoded = processor.encode_state_and_text(["a"], torch.full((1, 6), 1e3), torch.full((1, 4, 5), -1e3))
    assert encoded["state"].eq(1).all() and encoded["actions"].eq(-1).all()
    assert type(config).from_dict({**config.to_dict()}).clip_normalized
    assert not tiny_config("openvla-oft").clip_normalized  # as in policies of version 0.1.0, which lack the key


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
        ("mean_std", {"mean": [0.0], "std": [0.0]}, "'std' of the action is 0 in dimension 0, but deviations must be"),
        ("min_max", {"std": [-2.0], "min": [0.0], "max": [1.0]}, "'std' of the action is -2 in dimension 0"),
        ("mean_std", {"mean": [float("nan")], "std": [1.0]}, "'mean' of the action is nan in dimension 0"),
        ("identity", {"q99": [float("inf")]}, "'q99' of the action is inf in dimension 0"),
        ("mean_std", {"mean": ["high"], "std": [1.0]}, "'mean' of the action is high in dimension 0"),
        ("min_max", {"min": [2.0], "max": [1.0]}, "min=2 and max=1 in dimension 0, which are reversed"),
        ("quantile", {"q01": [2.0], "q99": [1.0]}, "q01=2 and q99=1 in dimension 0, which are reversed"),
        ("z", {}, "action_normalization must be one of identity, mean_std, min_max, quantile, got 'z'"),
    ],
)
def test_missing_and_misshapen_statistics_are_rejected(mode, statistics, message):
    with pytest.raises(ValueError, match=message):
        Normalizer("action", 1, mode, statistics)


def test_constant_dimension_may_have_equal_limits_and_masked_ones_no_deviation():
    Normalizer("action", 1, "quantile", {"q01": [1.0], "q99": [1.0]})
    Normalizer("action", 2, "mean_std", {"mean": [0.0, 0.0], "std": [1.0, 0.0], "mask": [True, False]})


def test_state_that_is_not_finite_never_reaches_a_prompt():
    """lerobot's tools normalize states themselves, and only ask the processor for the prompt."""
    with pytest.raises(ValueError, match="the input 'state' is not finite"):
        create_processor("pi05").encode_text(["a"], torch.full((1, 6), torch.nan))


def test_actions_that_are_not_finite_are_not_converted_to_robot_units():
    with pytest.raises(ValueError, match="the input 'action' is not finite"):
        create_processor().unnormalize_actions(torch.tensor([0.0, 0.0, 0.0, torch.inf, 0.0]))


def test_range_check_of_images_on_a_device_equals_that_on_the_cpu():
    """The check of images on other devices is the same function, called for all cameras together."""
    good, bad = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    check_image_range({"front": good, "wrist": bad})
    for value, message in ((torch.nan, "not finite"), (torch.inf, r"0, 1\], got .* inf"), (-0.5, "got -0.5")):
        bad[0, 1, 2, 3] = value
        with pytest.raises(ValueError, match=f"camera 'wrist': .*{message}"):
            check_image_range({"front": good, "wrist": bad})


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


@pytest.mark.parametrize("resize", ["letterbox", "letterbox-top-left", "stretch"])
@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (1, 1)])
def test_images_of_extreme_sizes_are_resized(resize, size):
    processor = create_processor(resize=resize)
    images = random_images(1, *size)
    pixels, _ = processor.prepare_images(images, {})
    assert pixels.shape == (1, *CONFIG.image_shape) and pixels.isfinite().all()
    assert pixels.max() > 0, "at least one row or column of the image must remain"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": ["a", "b", "c"]}, "task has 3 samples, but there are images of 2: pass one per sample"),
        ({"state": torch.zeros(3, 6)}, "state has 3 samples, but there are images of 2"),
        ({"actions": torch.zeros(1, 4, 5)}, "actions has 1 samples, but there are images of 2"),
        ({"action_is_pad": torch.zeros(3, 4)}, "action_is_pad has 3 samples, but there are images of 2"),
        ({"camera_mask": {"front": [True] * 3}}, "the mask of camera 'front' has 3 samples"),
        ({"images": random_images(2) | {"wrist": random_images(3)["wrist"]}}, "different numbers of images"),
    ],
)
def test_mismatched_batch_sizes_are_user_errors(change, message):
    observation = {"images": random_images(2), "task": ["a", "b"], "state": torch.zeros(2, 6)}
    with pytest.raises(UserError, match=message):
        create_processor()(**(observation | change))
