"""Tiny ROCKET-2 policy with random weights for the tests of this folder."""

import torch

from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction
from rocket_hf.modeling.rocket2_interface import Goal

TINY = dict(
    image_size=(32, 48), rgb_depth=3, rgb_width=32, rgb_heads=2, rgb_mlp_width=64, mask_depth=3, mask_width=16,
    mask_heads=2, mask_mlp_width=32, width=32, heads=2, view_tokens=2, spatial_layers=2, temporal_layers=2,
    window_steps=3,
)  # fmt: skip
FACTORED = {"action_space": "factored", "action_factors": {"forward": 3, "turn": 5}, "rest_action": [0, 2]}
STEPS = 8


def random_rocket2(**changes) -> Rocket2ForActionPrediction:
    torch.manual_seed(0)
    model = Rocket2ForActionPrediction(Rocket2Config(**(TINY | FACTORED | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4 if parameter.dim() > 1 else 0.2)
    return model.eval()


def goal_at(batch, step) -> Goal:
    rows, index = torch.arange(len(batch["images"])), batch["goal_index"][:, step]
    return Goal(*(batch[key][rows, index] for key in ("goal_images", "goal_masks", "goal_interactions")))
