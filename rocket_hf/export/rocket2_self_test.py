"""What the self-test of a ROCKET-2 is made of: pictures and goals drawn from a seed, and what the trained one does."""

from typing import Any

import torch
from torch import Tensor

from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_self_test import Rocket2SelfTest, Shown, distances, effects, others, play
from rocket_hf.modeling.self_test import versions

from .self_test import LEAST_TOLERANCE, MARGIN

ENVIRONMENTS, STEPS, ROCKET2 = 2, 6, 2
PATCHES = (6, 8)  # of a picture: noise of single pixels looks the same everywhere
# A choice on the edge is drawn otherwise when its scores are a little off. At least these shares may be.
LEAST_OTHERS = {"float32": 0.1, "bfloat16": 0.5}


def record_rocket2_self_test(
    trained: Rocket2ForActionPrediction, published: Rocket2ForActionPrediction
) -> Rocket2SelfTest:
    """`published` is the trained policy, with the same heads, in the dtype of its file."""
    shown = draw_shown(trained.config)
    played = play(trained, shown)
    again = {
        dtype: play(in_dtype(published, getattr(torch, dtype)), shown, played.choices) for dtype in LEAST_TOLERANCE
    }
    off = {dtype: max(distances(other, played).values()) for dtype, other in again.items()}
    return Rocket2SelfTest(
        shown=shown,
        played=played,
        tolerances={dtype: max(least, MARGIN * off[dtype]) for dtype, least in LEAST_TOLERANCE.items()},
        most_others={
            dtype: min(1.0, max(least, MARGIN * others(again[dtype], played))) for dtype, least in LEAST_OTHERS.items()
        },
        effects=effects(trained, shown, played, played.choices),
        versions=versions(),
    )


def draw_shown(config: Rocket2Config) -> Shown:
    draw = torch.Generator().manual_seed(0)

    def patches(channels: int, *count: int) -> Tensor:
        """Coarse patches in [0, 1], (*count, channels, H, W)."""
        drawn = torch.rand(count[0] * count[1], channels, *PATCHES, generator=draw)
        size = list(config.image_size)
        return torch.nn.functional.interpolate(drawn, size=size, mode="bilinear").unflatten(0, count)

    return Shown(
        images=(patches(3, ENVIRONMENTS, STEPS) * 255).round().to(torch.uint8),
        goal_images=(patches(3, ENVIRONMENTS, ROCKET2) * 255).round().to(torch.uint8),
        goal_masks=patches(1, ENVIRONMENTS, ROCKET2)[:, :, 0] > 0.6,
        goal_interactions=torch.randint(0, config.interactions, (ENVIRONMENTS, ROCKET2), generator=draw),
    )


def in_dtype(policy: Rocket2ForActionPrediction, dtype: torch.dtype | None) -> Rocket2ForActionPrediction:
    """The policy with the heads that it has in this dtype; its weights are shared where they have it already."""
    copy = policy.for_inference(policy.config.auxiliary_heads)
    if dtype is not None and dtype != copy.dtype:
        weights: dict[str, Any] = {name: value.to(dtype) for name, value in copy.state_dict().items()}
        copy.load_state_dict(weights, strict=True, assign=True)
    return copy
