"""Recording of a VLA policy's self-test: a random observation, and the trained policy's actions for it."""

from typing import Any

import torch
from torch import Tensor

from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.normalization import Normalizer
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.modeling.self_test import SelfTest, library_versions, relative_distance, with_inverted_images

TASK = "open the drawer"
IMAGE_SIZE = (96, 128)
# Rounding differs between machines, even in float32 (TensorFloat-32 convolutions). A tolerance is MARGIN times the
# deviation measured on this machine, and at least these fractions of the actions.
MIN_TOLERANCE = {"float32": 5e-3, "bfloat16": 5e-2}
MARGIN = 4


def record_self_test(
    trained: RocketForActionPrediction, published: RocketForActionPrediction, processor: RocketProcessor
) -> SelfTest:
    """Record the actions of `trained`. `published` is the same policy in the dtype of the published weights."""
    generator = torch.Generator().manual_seed(0)
    images = {name: draw_image(generator) for name in processor.cameras}
    state = draw_state(processor, generator)
    batch = draw_batch(trained, processor(images=images, task=TASK, state=state), generator)
    actions = predict(trained, batch)
    cast = {dtype: cast_weights(published.for_inference(), getattr(torch, dtype)) for dtype in MIN_TOLERANCE}
    deviations = {dtype: relative_distance(predict(model, batch), actions) for dtype, model in cast.items()}
    return SelfTest(
        task=TASK,
        images=images,
        state=state,
        batch=batch,
        actions=actions,
        robot_actions=processor.unnormalize_actions(actions),
        tolerances={dtype: max(minimum, MARGIN * deviations[dtype]) for dtype, minimum in MIN_TOLERANCE.items()},
        image_effect=relative_distance(predict(trained, with_inverted_images(batch)), actions),
        versions=library_versions(),
    )


def draw_image(generator: torch.Generator) -> Tensor:
    """Return an image of coarse colored patches, (3, H, W) uint8: resizing would remove the noise of single pixels."""
    patches = torch.rand(1, 3, 6, 8, generator=generator)
    image = torch.nn.functional.interpolate(patches, size=IMAGE_SIZE, mode="bilinear")
    return (image[0] * 255).round().to(torch.uint8)


def draw_state(processor: RocketProcessor, generator: torch.Generator) -> Tensor:
    """Return a state in robot units, well within the range of the statistics."""
    normalized = torch.rand(processor.state_dim, generator=generator) - 0.5
    statistics = processor.statistics.get("state", {})
    return Normalizer("state", processor.state_dim, processor.state_normalization, statistics).unnormalize(normalized)


def draw_batch(model: RocketForActionPrediction, inputs: dict, generator: torch.Generator) -> dict[str, Tensor]:
    batch = {**inputs, "images": (inputs["images"] * 255).round().to(torch.uint8)}
    policy = model.config.policy_config
    if policy.draws_noise:
        batch["noise"] = torch.randn(1, model.config.chunk_size, policy.max_action_dim, generator=generator)
    return batch


def predict(model: RocketForActionPrediction, batch: dict[str, Tensor]) -> Tensor:
    device = next(model.parameters()).device
    on_device: Any = {name: value.to(device) for name, value in batch.items()}
    return model.predict_action_chunk(**on_device).float().cpu()


def cast_weights[Policy: (RocketForActionPrediction, Rocket2ForActionPrediction)](
    policy: Policy, dtype: torch.dtype | None
) -> Policy:
    """Cast a policy, usually a copy for inference, in place; `dtype` None changes nothing.

    Weights that already have `dtype` stay shared with the original.
    """
    if dtype is not None and dtype != policy.dtype:
        weights: dict[str, Any] = {name: value.to(dtype) for name, value in policy.state_dict().items()}
        policy.load_state_dict(weights, strict=True, assign=True)
    return policy
