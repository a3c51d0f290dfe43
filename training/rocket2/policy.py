"""ROCKET-2 policy that a run starts from, and checks that the datasets fit it."""

from pathlib import Path

import torch

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction

from ..base_policy import find_policy_folder
from ..distributed.placement import gradients_are_sharded
from ..recipe import Rocket2Recipe, Rocket2Settings
from ..recipe_checks import auxiliary_heads
from .dataset import RecordedRooms

CONFIG_FILES = ("config.json",)


def find_rocket2_folder(name: str) -> Path:
    return find_policy_folder(name, Rocket2Config, CONFIG_FILES)


def rocket2_policy_config(recipe: Rocket2Recipe) -> Rocket2Config:
    """Return the configuration of the policy with the auxiliary heads that the recipe trains."""
    if not recipe.policy:
        return new_policy_config(recipe.rocket2)
    folder = find_rocket2_folder(recipe.policy)
    return Rocket2Config.from_pretrained(folder, auxiliary_heads=auxiliary_heads(recipe.rocket2))


def new_policy_config(settings: Rocket2Settings) -> Rocket2Config:
    config = Rocket2Config(**settings.config, auxiliary_heads=auxiliary_heads(settings))
    if config.rgb_frozen:
        raise UserError(
            "rocket2.config.rgb_frozen would freeze the random image encoder of a new policy: set it to false, or pass "
            "--policy with a policy whose encoder is trained (see `rocket-hf pretrain-encoder`)"
        )
    return config


def load_rocket2_policy(recipe: Rocket2Recipe, config: Rocket2Config) -> Rocket2ForActionPrediction:
    """Load the recipe's policy, or create a new one. New weights are drawn from the recipe's seed."""
    torch.manual_seed(recipe.run.seed)
    if not recipe.policy:
        return Rocket2ForActionPrediction(config)
    folder = find_rocket2_folder(recipe.policy)
    return Rocket2ForActionPrediction.from_pretrained(folder, config=config, dtype=torch.float32)


def check_policy_fits_data(config: Rocket2Config, data: RecordedRooms) -> None:
    """Check that the policy has the actions, interactions and image size of the recordings."""
    if list(config.factors) != data.action_names:
        raise UserError(
            f"the policy's actions are {', '.join(config.factors)}, the dataset's are {', '.join(data.action_names)}: "
            "set rocket2.config.action_factors, or choose another policy"
        )
    recorded = torch.stack([data.actions, data.executed]).unbind(-1)
    for (name, choices), values in zip(config.factors.items(), recorded, strict=True):
        if not 0 <= values.min() <= values.max() < choices:
            raise UserError(
                f"the policy has {choices} choices of {name!r}, but the dataset has choice {int(values.max())}: "
                "set rocket2.config.action_factors, or choose another policy"
            )
    if tuple(config.image_size) != data.image_size:
        policy_size, data_size = ("x".join(map(str, size)) for size in (config.image_size, data.image_size))
        raise UserError(
            f"the policy reads images of {policy_size}, but those of the dataset have {data_size}: "
            "set rocket2.config.image_size, or choose another policy"
        )
    largest = max(episode.interaction for episode in data.episodes)
    if largest >= config.interactions:
        raise UserError(
            f"the policy has {config.interactions} interactions, but the dataset has interaction {largest}: "
            "set rocket2.config.interactions, or choose another policy"
        )


def check_no_sharding() -> None:
    if gradients_are_sharded():
        raise UserError(
            "ROCKET-2 policies are small and train in one process or with DDP only: launch without FSDP2 and DeepSpeed"
        )
