"""Untrained policies for MetaWorld that push forward and down; their observations only add small changes."""

from pathlib import Path

import torch

from rocket_hf.export.policy_folder import export_policy
from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
from rocket_hf.modeling.processing_rocket import RocketProcessor
from rocket_hf.tiny import character_tokenizer, tiny_config

PUSH = [0.0, 1.0, -0.4, 0.0]  # closes drawers, and presses buttons on the way


def pushing_policy(spread: float = 0.2, push: float = 1.0, family: str = "openvla-oft", **changes):
    torch.manual_seed(0)
    robot = {"cameras": ["corner2", "gripperPOV"], "state_dim": 4, "action_dim": 4}
    policy = RocketForActionPrediction(tiny_config(family, alignment=None, **(robot | changes))).eval()
    action = {"mean": [push * value for value in PUSH], "std": [spread] * 4, "min": [-1.0] * 4, "max": [1.0] * 4}
    state = {"mean": [0.0, 0.6, 0.2, 0.5], "std": [0.1] * 4}
    statistics = {"state": state, "action": action}
    modes = {"state_normalization": "mean_std", "action_normalization": "mean_std"}
    processor = RocketProcessor.for_config(
        policy.config, character_tokenizer(), statistics, max_prompt_length=128, **modes
    )
    return policy, processor


def export_pushing_policy(folder: Path, **changes) -> Path:
    policy, processor = pushing_policy(**changes)
    return export_policy(policy, processor, folder)
