"""The processor: images of any kind, prompts, statistics, and the way back to robot units."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from rocket_hf.modeling.normalization import Normalizer
from rocket_hf.modeling.processing_rocket import RocketProcessor, letterbox, stretch
from rocket_hf.tiny import character_tokenizer, tiny_config, tiny_statistics

from .conftest import randomised

CONFIG = tiny_config()


def make(family: str = "pi0", **changes) -> RocketProcessor:
    config = tiny_config(family)
    return RocketProcessor.for_config(config, character_tokenizer(), tiny_statistics(config), **changes)


def frames(size: int = 2, height: int = 28, width: int = 28) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(0, 256, (size, 3, height, width), generator=draw, dtype=torch.uint8)
        for name in CONFIG.cameras
    }


def test_a_training_batch_fits_the_model():
    processor = make()
    batch = processor(
        images=frames(), task=["a", "open the drawer"], state=torch.randn(2, 6),
        actions=torch.randn(2, 4, 5), action_is_pad=torch.zeros(2, 4, dtype=torch.bool),
    )  # fmt: skip
    assert batch["images"].shape == (2, *CONFIG.image_shape) and batch["images"].dtype == torch.float32
    assert batch["camera_mask"].all() and batch["input_ids"].shape == (2, 48)
    assert randomised(CONFIG)(**batch, targets=CONFIG.fake_targets()).losses["action/flow_matching"].isfinite()


def test_every_form_of_an_image_is_the_same():
    processor = make()
    image = frames(1, 30, 40)["front"][0]
    rows_first = image.permute(1, 2, 0).contiguous()
    forms = [
        image,
        image[None],
        image / 255,
        rows_first.numpy(),
        rows_first.numpy() / np.float32(255),
        Image.fromarray(rows_first.numpy()),
    ]
    pixels = [
        processor(images={"front": form, "wrist": None}, task="a", state=torch.zeros(6))["images"] for form in forms
    ]
    for each in pixels[1:]:
        torch.testing.assert_close(each, pixels[0])


def test_resizes_have_names():
    image = torch.rand(1, 3, 20, 40)
    boxed, stretched = letterbox(image, 40), stretch(image, 40)
    assert boxed.shape == stretched.shape == (1, 3, 40, 40)
    assert not boxed[:, :, :10].any() and not boxed[:, :, 30:].any()
    torch.testing.assert_close(boxed[:, :, 10:30], image)
    constant = torch.full((1, 3, 63, 101), 0.25)
    torch.testing.assert_close(stretch(constant, 28), torch.full((1, 3, 28, 28), 0.25))
    with pytest.raises(ValueError, match="resize must be one of letterbox, letterbox-top-left, stretch, got 'crop'"):
        make(resize="crop")


def test_the_state_may_be_left_out_where_nothing_reads_it():
    processor, arguments = make(), {"images": frames(), "task": "a"}
    batch = processor(**arguments)
    assert "state" not in batch
    with pytest.raises(ValueError, match="the batch lacks 'state'"):
        randomised(CONFIG).predict_action_chunk(**batch)
    with pytest.raises(ValueError, match="prompt of this policy contains the state: pass `state`"):
        make("pi05")(**arguments)
    config = tiny_config("openvla", alignment=None)
    batch = make("openvla")(images={config.cameras[0]: frames()["front"]}, task="a")
    assert randomised(config).predict_action_chunk(**batch).isfinite().all()


def test_missing_cameras():
    processor, images = make(), frames()
    batch = processor(images={"front": images["front"], "wrist": None}, task="a", state=torch.zeros(2, 6))
    assert batch["camera_mask"].tolist() == [[True, False]] * 2 and not batch["images"][:, 1].any()
    batch = processor(images=images, task="a", state=torch.zeros(2, 6), camera_mask={"wrist": [True, False]})
    assert batch["camera_mask"].tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images": {"front": frames()["front"]}}, "the observation lacks the camera 'wrist'"),
        ({"images": frames() | {"wrists": None}}, "this policy has no camera 'wrists': did you mean 'wrist'?"),
        ({"images": {"front": None, "wrist": None}}, "all cameras are None"),
        ({"images": frames() | {"wrist": torch.rand(2, 28, 28)}}, r"camera 'wrist': an image must be \(H, W, 3\)"),
        (
            {"images": frames() | {"wrist": frames()["wrist"].float()}},
            r"camera 'wrist': a float image must lie in \[0, 1\]",
        ),
        ({"images": frames() | {"wrist": frames()["wrist"].int()}}, "must be uint8 or float"),
        ({"state": torch.zeros(2, 7)}, "the state has 7 dimensions, but the policy needs 6"),
        ({"actions": torch.zeros(2, 4, 4)}, "the action has 4 dimensions, but the policy needs 5"),
        ({"state": torch.zeros(3, 6), "task": ["a", "b"]}, "state has 3 samples, but there are images of 2"),
        ({"task": ["a", "b", "c"]}, "task has 3 samples, but there are images of 2"),
        ({"actions": torch.zeros(1, 4, 5)}, "actions has 1 samples, but there are images of 2"),
        ({"task": "x" * 60}, "a prompt has 62 tokens, but max_prompt_length is 48: shorten the task"),
    ],
)
def test_wrong_input_is_named(changes, sentence):
    arguments = {"images": frames(), "task": "a", "state": torch.zeros(2, 6)} | changes
    with pytest.raises(ValueError, match=sentence):
        make()(**arguments)


def test_prompts_are_those_of_the_published_models():
    state = torch.tensor([-1.0, 0.0, 0.999, 0.5, -0.5, 1.0])
    assert make("pi0").prompts([" open the_drawer\n"], state[None]) == ["open the drawer\n"]
    bins = np.digitize(state.numpy(), bins=np.linspace(-1, 1, 256 + 1)[:-1]) - 1  # as openpi writes it
    expected = f"Task: open the drawer, State: {' '.join(map(str, bins))};\nAction: "
    assert make("pi05").prompts(["open the_drawer"], state[None]) == [expected]


def test_prompts_of_different_lengths_are_padded_and_decoded():
    processor = make()
    batch = processor(images=frames(), task=["a", "open"], state=torch.zeros(2, 6))
    assert batch["attention_mask"].sum(1).tolist() == [3, 6]  # <bos>, the letters, the line break
    assert processor.tokenizer.decode(batch["input_ids"][1][1:6]).replace(" ", "") == "open\n"


@pytest.mark.parametrize("mode", ["identity", "mean_std", "min_max", "quantile"])
def test_unnormalizing_is_the_inverse(mode):
    normalizer = Normalizer("action", 5, mode, tiny_statistics(CONFIG)["action"])
    raw = torch.randn(2, 4, 5)
    torch.testing.assert_close(normalizer.unnormalize(normalizer.normalize(raw)), raw)


def test_known_values():
    statistics = {"mean": [1.0, 0.0], "std": [2.0, 1.0], "q01": [-2.0, 0.0], "q99": [2.0, 1.0], "mask": [True, False]}
    raw = torch.tensor([[3.0, 0.75]])
    assert Normalizer("action", 2, "mean_std", statistics).normalize(raw).tolist() == [[1.0, 0.75]]
    assert Normalizer("action", 2, "quantile", statistics).normalize(raw).tolist() == [[1.5, 0.75]]
    assert Normalizer("action", 2, "quantile", statistics).unnormalize(torch.tensor([[-1.0, 1.0]])).tolist() == [
        [-2.0, 1.0]
    ]


@pytest.mark.parametrize(
    ("mode", "statistics", "sentence"),
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
def test_missing_statistics_are_named(mode, statistics, sentence):
    with pytest.raises(ValueError, match=sentence):
        Normalizer("action", 1, mode, statistics)


def test_processor_round_trip(family, tmp_path):
    processor = make(family, resize="stretch", action_normalization="quantile")
    processor.save_pretrained(tmp_path)
    loaded = RocketProcessor.from_pretrained(tmp_path)
    images = frames(2, 40, 60)
    arguments = {
        "images": {name: images[name] for name in processor.cameras},
        "task": "open",
        "state": torch.randn(2, 6),
        "actions": torch.randn(2, 4, 5),
    }
    one, two = processor(**arguments), loaded(**arguments)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert loaded.statistics == processor.statistics
    assert AutoTokenizer.from_pretrained(tmp_path)("a").input_ids == processor.tokenizer("a").input_ids
