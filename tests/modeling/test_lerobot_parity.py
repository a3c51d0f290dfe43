"""Tests of pi0 and pi0.5 against lerobot's policies with the same tiny weights: loss, sampled actions and taps.

rocket_hf/bench/lerobot_tiny.py creates lerobot's tiny policies.
"""

import importlib

import pytest
import torch
from torch import nn

from rocket_hf.bench.lerobot_tiny import CAMERAS, CLASSES, lerobot_batch, lerobot_policy
from rocket_hf.convert.lerobot_names import TIED_HEAD, UNUSED, rules_to_lerobot
from rocket_hf.convert.to_lerobot import lerobot_name, lerobot_weights
from rocket_hf.modeling.configuration_pi0 import Pi0Config
from rocket_hf.modeling.configuration_rocket import RocketConfig
from rocket_hf.modeling.image_resizing import letterbox
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.tiny import tiny_config

from .conftest import hooked_streams, random_model

pytestmark = pytest.mark.needs_lerobot
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def copy_weights(ours: RocketForActionPrediction, theirs: nn.Module) -> None:
    """Load all weights strictly. Those that rocket_hf leaves out are zero in lerobot's policy; no action uses them."""
    theirs.load_state_dict(lerobot_weights(ours), strict=True)


@pytest.fixture(params=["pi0", "pi05"])
def pair(request):
    """Return rocket_hf's model and lerobot's policy with the same weights."""
    config = tiny_config(request.param, alignment=None)
    ours, theirs = random_model(config), lerobot_policy(config)
    copy_weights(ours, theirs)
    return ours, theirs


def noise_and_time(config, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(7)
    noise = torch.randn(size, config.chunk_size, config.policy_config.max_action_dim, generator=draw)
    return noise, torch.rand(size, generator=draw) * 0.999 + 0.001


@pytest.mark.parametrize("present", [CAMERAS, CAMERAS[:1], CAMERAS[1:]], ids=["both", "first", "second"])
def test_loss_and_actions_equal_those_of_lerobot(pair, present):
    ours, theirs = pair
    config = ours.config
    batch = config.fake_batch(batch_size=3)  # prompts of different lengths
    del batch["action_is_pad"]  # lerobot's pi policies have no padding steps
    batch["camera_mask"][:] = torch.tensor([name in present for name in CAMERAS])
    noise, time = noise_and_time(config, 3)
    theirs.model.sample_noise = lambda shape, device: noise
    theirs.model.sample_time = lambda size, device: time

    expected, _ = theirs.forward(lerobot_batch(batch, present))
    losses = ours(**batch, noise=noise, time=time).losses
    torch.testing.assert_close(losses["action/flow_matching"], expected, **TOLERANCE)

    expected = theirs.predict_action_chunk(lerobot_batch(batch, present), noise=noise)
    torch.testing.assert_close(ours.predict_action_chunk(**batch, noise=noise), expected, **TOLERANCE)


def test_cameras_missing_in_single_samples_match_lerobot(pair):
    """Use lerobot's inner model, which accepts a mask per sample; each sample lacks another camera."""
    ours, theirs = pair
    config = ours.config
    batch = config.fake_batch(batch_size=2)
    batch["camera_mask"] = torch.tensor([[True, False], [False, True]])
    noise, _ = noise_and_time(config, 2)
    images = [batch["images"][:, index].float() / 255 * 2 - 1 for index in range(2)]
    masks = list(batch["camera_mask"].unbind(1))
    inputs = [images, masks, batch["input_ids"], batch["attention_mask"].bool()]
    if config.policy_config.reads_state:
        inputs.append(theirs.prepare_state({"observation.state": batch["state"]}))
    expected = theirs.model.sample_actions(*inputs, noise=noise)[..., : config.action_dim]
    torch.testing.assert_close(ours.predict_action_chunk(**batch, noise=noise), expected, **TOLERANCE)


def test_taps_equal_streams_of_lerobot_layers(pair):
    ours, theirs = pair
    config = ours.config
    batch = config.fake_batch()
    noise, time = noise_and_time(config, 2)
    theirs.model.sample_noise = lambda shape, device: noise
    theirs.model.sample_time = lambda size, device: time
    language = theirs.model.paligemma_with_expert.paligemma.model.language_model
    streams = hooked_streams(language, lambda: theirs.forward(lerobot_batch(batch)))

    depth = config.policy_config.depth
    output = ours.policy(batch | {"noise": noise, "time": time}, taps=[0, 1, 2, -1])
    assert sorted(output.taps) == [0, 1, 2, depth]
    for layer, tap in output.taps.items():
        tokens = tap.shape[1] * tap.shape[2]
        torch.testing.assert_close(tap.flatten(1, 2), streams[layer][:, :tokens], **TOLERANCE)


def test_letterbox_equals_lerobot():
    from lerobot.policies.common.vla_utils import resize_with_pad_torch

    for shape in ((48, 64), (64, 48), (20, 31), (28, 28), (480, 640)):
        images = torch.rand(2, 3, *shape)
        torch.testing.assert_close(letterbox(images, 28), resize_with_pad_torch(images, 28, 28))


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile"])
def test_normalization_equals_lerobot(mode):
    from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep

    from rocket_hf.modeling.normalization import Normalizer
    from rocket_hf.tiny import tiny_statistics

    config = tiny_config()
    statistics = tiny_statistics(config)["action"]
    statistics["max"][2] = statistics["min"][2]  # a constant dimension
    lerobot_mode = {"mean_std": NormalizationMode.MEAN_STD, "min_max": NormalizationMode.MIN_MAX,
                    "quantile": NormalizationMode.QUANTILES}[mode]  # fmt: skip
    arguments = dict(
        features={"action": PolicyFeature(FeatureType.ACTION, (5,))},
        norm_map={FeatureType.ACTION: lerobot_mode},
        stats={"action": {key: torch.tensor(value) for key, value in statistics.items()}},
    )
    normalize, unnormalize = NormalizerProcessorStep(**arguments), UnnormalizerProcessorStep(**arguments)
    ours = Normalizer("action", 5, mode, statistics)
    raw = torch.randn(3, 4, 5)
    expected = normalize._normalize_action(raw, inverse=False)
    torch.testing.assert_close(ours.normalize(raw), expected)
    torch.testing.assert_close(ours.unnormalize(raw), unnormalize._normalize_action(raw, inverse=True))


@pytest.mark.parametrize("variant", ["pi0", "pi05"])
def test_full_size_weight_names_and_shapes_equal_lerobot(variant):
    """Compare on the meta device, so that nothing is allocated."""
    from lerobot.configs import FeatureType, PolicyFeature

    module = importlib.import_module(f"lerobot.policies.{variant}.modeling_{variant}")
    settings_class, policy_class = (getattr(module, name) for name in CLASSES[variant])
    features = {"observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 224, 224))}
    features["observation.state"] = PolicyFeature(FeatureType.STATE, (8,))
    output = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    with torch.device("meta"):
        settings = settings_class(input_features=features, output_features=output, device="cpu")
        settings.device = "meta"
        theirs = policy_class(settings)
        ours = RocketForActionPrediction(RocketConfig(policy_config=Pi0Config(variant=variant)))
    rules = rules_to_lerobot(variant)
    shapes = {lerobot_name(name, rules): weight.shape for name, weight in ours.state_dict().items()}
    unused = {f"model.{name}" for name in (*UNUSED[variant], TIED_HEAD)}
    expected = {name: weight.shape for name, weight in theirs.state_dict().items() if name not in unused}
    assert shapes == expected
