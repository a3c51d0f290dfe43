"""The ROCKET-2 policy that a run starts from: a new one, or one that there is; and whether the data fit it."""

import torch
from safetensors import SafetensorError

from rocket_hf.errors import UserError
from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
from rocket_hf.modeling.modeling_rocket2 import Rocket2ForActionPrediction

from ..distributed.deepspeed_zero import zero_stage
from ..distributed.placement import sharded
from ..recipe import GoalRecipe, Recipe
from ..recipe_checks import auxiliary_heads
from ..vla.sources import policy_folder
from .dataset import RecordedRooms


def policy_config(recipe: Recipe) -> Rocket2Config:
    """With the heads that the recipe trains."""
    assert recipe.goals is not None
    if not recipe.policy:
        return new_config(recipe.goals)
    folder = policy_folder(recipe.policy, Rocket2Config, files=("config.json",))
    return Rocket2Config.from_pretrained(folder, auxiliary_heads=auxiliary_heads(recipe.goals))


def new_config(goals: GoalRecipe) -> Rocket2Config:
    config = Rocket2Config(**goals.config, auxiliary_heads=auxiliary_heads(goals))
    if config.rgb_frozen:
        raise UserError(
            "goals.config.rgb_frozen would keep the encoder of a new policy as it was drawn: set it to false, or pass "
            "--policy with one that has learned to see"
        )
    return config


def open_policy(recipe: Recipe, config: Rocket2Config) -> Rocket2ForActionPrediction:
    """What is new is drawn from the recipe's seed."""
    torch.manual_seed(recipe.run.seed)
    if not recipe.policy:
        return Rocket2ForActionPrediction(config)
    folder = policy_folder(recipe.policy, Rocket2Config, files=("config.json",))
    try:
        return Rocket2ForActionPrediction.from_pretrained(folder, config=config, dtype=torch.float32)
    except SafetensorError as error:
        raise UserError(f"the weights in {folder} cannot be read: {error}; copy them again") from error


def check_fits(config: Rocket2Config, data: RecordedRooms) -> None:
    """That the policy can do what was done in the data, and sees pictures of their size."""
    names = ", ".join(config.factors)
    if list(config.factors) != data.factors:
        raise UserError(f"the policy's actions are {names}, the dataset's are {', '.join(data.factors)}: "
                         "set goals.config.action_factors, or take another policy")  # fmt: skip
    for (name, choices), done in zip(
        config.factors.items(), torch.stack([data.actions, data.executed]).unbind(-1), strict=True
    ):
        if not 0 <= done.min() <= done.max() < choices:
            raise UserError(f"the policy has {choices} choices of {name!r}, the dataset has number {int(done.max())}: "
                             "set goals.config.action_factors, or take another policy")  # fmt: skip
    if tuple(config.image_size) != data.size:
        sizes = ["x".join(map(str, size)) for size in (config.image_size, data.size)]
        raise UserError(f"the policy sees pictures of {sizes[0]}, the dataset has {sizes[1]}: "
                         "set goals.config.image_size, or take another policy")  # fmt: skip
    most = max(episode.interaction for episode in data.episodes)
    if most >= config.interactions:
        raise UserError(f"the policy knows {config.interactions} interactions, the dataset has number {most}: "
                         "set goals.config.interactions, or take another policy")  # fmt: skip


def check_placement() -> None:
    if sharded() or zero_stage() is not None:
        raise UserError("ROCKET-2 trains on one process or with DDP, its weights are few: "
                         "launch without FSDP2 and DeepSpeed")  # fmt: skip
