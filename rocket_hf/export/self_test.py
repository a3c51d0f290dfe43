"""What a self-test is made of: an observation drawn from a seed, and what the trained policy does with it."""

from typing import Any

import torch
from torch import Tensor

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.normalization import Normalizer
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.self_test import SelfTest, distance, inverted, versions

TASK = "open the drawer"
IMAGE_SIZE = (96, 128)
# Other machines round otherwise, also in float32 (TensorFloat-32 convolutions). Four times what is measured here, or
# these shares of the actions, whichever is more.
LEAST_TOLERANCE = {"float32": 5e-3, "bfloat16": 5e-2}
MARGIN = 4


def record_self_test(
    trained: RocketForActionPrediction, published: RocketForActionPrediction, processor: RocketProcessor
) -> SelfTest:
    """`published` is the trained policy in the dtype of its file."""
    draw = torch.Generator().manual_seed(0)
    images = {name: draw_image(draw) for name in processor.cameras}
    state = draw_state(processor, draw)
    batch = draw_batch(trained, processor(images=images, task=TASK, state=state), draw)
    actions = predict(trained, batch)
    other_dtypes = {dtype: in_dtype(published, getattr(torch, dtype)) for dtype in LEAST_TOLERANCE}
    off = {dtype: distance(predict(model, batch), actions) for dtype, model in other_dtypes.items()}
    return SelfTest(
        task=TASK,
        images=images,
        state=state,
        batch=batch,
        actions=actions,
        robot_actions=processor.unnormalize_actions(actions),
        tolerances={dtype: max(least, MARGIN * off[dtype]) for dtype, least in LEAST_TOLERANCE.items()},
        image_effect=distance(predict(trained, inverted(batch)), actions),
        versions=versions(),
    )


def draw_image(draw: torch.Generator) -> Tensor:
    """Coarse colored patches, (3, H, W) uint8: noise of single pixels would vanish when it is resized."""
    patches = torch.rand(1, 3, 6, 8, generator=draw)
    image = torch.nn.functional.interpolate(patches, size=IMAGE_SIZE, mode="bilinear")
    return (image[0] * 255).round().to(torch.uint8)


def draw_state(processor: RocketProcessor, draw: torch.Generator) -> Tensor:
    """A state in robot units, well within what the statistics know."""
    normalized = torch.rand(processor.state_dim, generator=draw) - 0.5
    statistics = processor.statistics.get("state", {})
    return Normalizer("state", processor.state_dim, processor.state_normalization, statistics).unnormalize(normalized)


def draw_batch(model: RocketForActionPrediction, inputs: dict, draw: torch.Generator) -> dict[str, Tensor]:
    batch = {**inputs, "images": (inputs["images"] * 255).round().to(torch.uint8)}
    policy = model.config.policy_config
    if policy.draws_noise:
        batch["noise"] = torch.randn(1, model.config.chunk_size, policy.max_action_dim, generator=draw)
    return batch


def predict(model: RocketForActionPrediction, batch: dict[str, Tensor]) -> Tensor:
    device = next(model.parameters()).device
    there: Any = {name: value.to(device) for name, value in batch.items()}
    return model.predict_action_chunk(**there).float().cpu()


def in_dtype(model: RocketForActionPrediction, dtype: torch.dtype | None) -> RocketForActionPrediction:
    """The policy without its head in this dtype; its weights are shared where they have it already."""
    policy = model.for_inference()
    if dtype is not None and dtype != policy.dtype:
        weights = {name: value.to(dtype) for name, value in policy.state_dict().items()}
        policy.load_state_dict(weights, strict=True, assign=True)
    return policy
