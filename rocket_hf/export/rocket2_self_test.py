"""Recording of a ROCKET-2 policy's self-test: random images and goals, and the trained policy's outputs for them."""

import torch
from torch import Tensor

from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_self_test import (
    Rocket2Scenario,
    Rocket2SelfTest,
    changed_choices,
    input_effects,
    output_distances,
    run_scenario,
)
from rocket_hf.modeling.self_test import library_versions

from .self_test import MARGIN, MIN_TOLERANCE, cast_weights

ENVIRONMENTS, STEPS, GOALS = 2, 6, 2
PATCHES = (6, 8)  # rows and columns of an image's patches; noise of single pixels would look the same everywhere
# Small deviations of the scores change some of the sampled choices. At least these fractions are tolerated.
MIN_CHANGED_CHOICES = {"float32": 0.1, "bfloat16": 0.5}


def record_rocket2_self_test(
    trained: Rocket2ForActionPrediction, published: Rocket2ForActionPrediction
) -> Rocket2SelfTest:
    """Record the outputs of `trained`. `published` is the same policy, with the same heads, in the published dtype."""
    scenario = draw_scenario(trained.config)
    responses = run_scenario(trained, scenario)
    replayed = {
        dtype: run_scenario(cast_copy(published, getattr(torch, dtype)), scenario, responses.choices)
        for dtype in MIN_TOLERANCE
    }
    deviations = {dtype: max(output_distances(other, responses).values()) for dtype, other in replayed.items()}
    return Rocket2SelfTest(
        scenario=scenario,
        responses=responses,
        tolerances={dtype: max(minimum, MARGIN * deviations[dtype]) for dtype, minimum in MIN_TOLERANCE.items()},
        most_others={
            dtype: min(1.0, max(minimum, MARGIN * changed_choices(replayed[dtype], responses)))
            for dtype, minimum in MIN_CHANGED_CHOICES.items()
        },
        effects=input_effects(trained, scenario, responses, responses.choices),
        versions=library_versions(),
    )


def draw_scenario(config: Rocket2Config) -> Rocket2Scenario:
    generator = torch.Generator().manual_seed(0)

    def patches(channels: int, *count: int) -> Tensor:
        """Return images of coarse patches with values in [0, 1], (*count, channels, H, W)."""
        drawn = torch.rand(count[0] * count[1], channels, *PATCHES, generator=generator)
        size = list(config.image_size)
        return torch.nn.functional.interpolate(drawn, size=size, mode="bilinear").unflatten(0, count)

    return Rocket2Scenario(
        images=(patches(3, ENVIRONMENTS, STEPS) * 255).round().to(torch.uint8),
        goal_images=(patches(3, ENVIRONMENTS, GOALS) * 255).round().to(torch.uint8),
        goal_masks=patches(1, ENVIRONMENTS, GOALS)[:, :, 0] > 0.6,
        goal_interactions=torch.randint(0, config.interactions, (ENVIRONMENTS, GOALS), generator=generator),
    )


def cast_copy(policy: Rocket2ForActionPrediction, dtype: torch.dtype | None) -> Rocket2ForActionPrediction:
    return cast_weights(policy.for_inference(policy.config.auxiliary_heads), dtype)
