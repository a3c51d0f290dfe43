"""Train a LoRA adapter of a policy for a new robot, with the cameras, state and actions of its LeRobot dataset.

    rocket-hf adapt you/base@v1 --dataset you/new-robot --out runs/new-robot
    rocket-hf publish runs/new-robot --adapter --repo you/new-robot-adapter

Flags of `accelerate launch`, such as --num_processes 2, start several processes: see `rocket-hf train --help`.
"""

import argparse
import json
from pathlib import Path

from rocket_hf.errors import UserError
from rocket_hf.training.arguments import add_run_arguments

HELP = "train a LoRA adapter of a policy for a new robot"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="folder or Hub id (owner/name@revision) of the policy")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the new robot's LeRobot dataset")
    parser.add_argument("--recipe", default="adapt", help="name of a recipe, or a YAML file (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/adapt"), help="output folder of the run (default: %(default)s)"
    )
    add_run_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from rocket_hf.training import train
    from rocket_hf.training.launch import launch_training, split_launcher_flags

    flags, unknown = split_launcher_flags(arguments.unknown_words)
    if unknown:
        raise UserError(f"unrecognized arguments: {' '.join(unknown)}; see `rocket-hf adapt --help`")
    words = ["--recipe", arguments.recipe, "--policy", arguments.base, "--dataset", arguments.dataset]
    words += ["--out", str(arguments.out), *(["--dry-run"] * arguments.dry_run), *(["--resume"] * arguments.resume)]
    for change in [*robot_changes_from_dataset(arguments), *arguments.set]:
        words += ["--set", change]
    return launch_training(flags, words) if flags else train.main(words)


def robot_changes_from_dataset(arguments: argparse.Namespace) -> list[str]:
    """Print the policy's robot beside the dataset's; return the dataset's settings that the user has not set."""
    from rocket_hf.modeling.configuration_rocket import RocketConfig
    from rocket_hf.modeling.robot_adaptation import config_for_robot
    from rocket_hf.training.base_policy import find_policy_folder
    from rocket_hf.training.data.robot_from_dataset import format_robot_comparison, read_robot_from_dataset
    from rocket_hf.training.recipe_files import read_vla_recipe

    changes = [f"policy={arguments.base}", f"data.datasets.0.id={arguments.dataset}", *arguments.set]
    recipe = read_vla_recipe(arguments.recipe, changes)
    policy = RocketConfig.from_pretrained(find_policy_folder(arguments.base), alignment=None)
    robot = read_robot_from_dataset(recipe.data.datasets[0], policy)
    chosen = {name: value for name, value in vars(recipe.robot).items() if value is not None}
    print("\n".join(format_robot_comparison(policy, robot | chosen)))
    config_for_robot(policy, robot | chosen)
    return [f"robot.{name}={json.dumps(value)}" for name, value in robot.items() if name not in chosen]
