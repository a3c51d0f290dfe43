"""The robot of a run: read from its datasets, as far as the recipe does not describe it."""

from dataclasses import asdict, replace
from typing import Any

from accelerate import Accelerator

from rocket_hf.modeling.configuration_rocket import RocketConfig

from ..base_policy import find_policy_folder
from ..data.robot_from_dataset import (
    DatasetDescription,
    describe_datasets,
    format_mixture,
    format_robot_comparison,
    robot_of,
)
from ..distributed.agreement import main_process_first
from ..recipe import RobotConfig, VLARecipe


def complete_robot(
    recipe: VLARecipe, accelerator: Accelerator, started: VLARecipe | None = None
) -> tuple[VLARecipe, list[str]]:
    """Return the recipe with every robot setting that its datasets determine, and a comparison with the policy's robot.

    Settings of the recipe itself come first. A resumed run keeps those with which it was `started`.
    """
    chosen = robot_changes(recipe)
    datasets: list[DatasetDescription] = []
    unused: list[str] = []
    with main_process_first(accelerator):  # so that downloads happen once
        policy = RocketConfig.from_pretrained(find_policy_folder(recipe.policy), alignment=None)
        if started is not None:
            robot = robot_changes(started)
        else:
            datasets = describe_datasets(recipe.data.datasets)
            robot = robot_of(datasets, recipe.data, policy)
    limit = policy.policy_config.max_cameras
    if limit is not None and "cameras" not in chosen and len(robot.get("cameras", [])) > limit:
        names = ", ".join(robot["cameras"][limit:])
        unused = [f"cameras not used, because this policy reads at most {limit}: {names}"]
        robot["cameras"] = robot["cameras"][:limit]
    for part in ("state", "action"):  # names belong to the dimensions of the dataset
        if f"{part}_dim" in chosen and chosen[f"{part}_dim"] != robot.get(f"{part}_dim"):
            robot.pop(f"{part}_names", None)
    robot |= chosen
    comparison = [
        *format_robot_comparison(policy, robot),
        *format_mixture(datasets, robot, recipe.data.resample),
        *unused,
    ]
    return replace(recipe, robot=RobotConfig(**robot)), comparison


def robot_changes(recipe: VLARecipe) -> dict[str, Any]:
    """Return the robot settings that the recipe changes."""
    return {name: value for name, value in asdict(recipe.robot).items() if value is not None}
