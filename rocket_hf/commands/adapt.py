"""Trains a LoRA adapter of a policy for a new robot, whose cameras, state and actions its LeRobot dataset tells.

rocket-hf adapt you/base@v1 --dataset you/new-robot --out runs/new-robot
rocket-hf publish runs/new-robot --adapter --repo you/new-robot-adapter
"""

import argparse
import json
from pathlib import Path

HELP = "train a LoRA adapter of a policy for a new robot"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="folder or Hub id[@revision] of the policy")
    parser.add_argument(
        "--dataset", required=True, help="folder or Hub id[@revision] of the new robot's LeRobot dataset"
    )
    parser.add_argument("--recipe", default="adapt", help="a recipe's name or file (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/adapt"), help="folder of the run (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe; repeatable")
    parser.add_argument("--dry-run", action="store_true", help="print what would happen, and stop")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")


def run(arguments: argparse.Namespace) -> int:
    from rocket_hf.modeling.configuration_rocket import RocketConfig
    from rocket_hf.modeling.robot_adaptation import config_for_robot
    from rocket_hf.training import train
    from rocket_hf.training.data.robot_from_dataset import format_robot_comparison, read_robot_from_dataset
    from rocket_hf.training.recipe_files import read_recipe
    from rocket_hf.training.vla.resources import policy_folder

    changes = [f"policy={arguments.base}", f"data.datasets.0.id={arguments.dataset}", *arguments.set]
    recipe = read_recipe(arguments.recipe, changes)
    policy = RocketConfig.from_pretrained(policy_folder(arguments.base), alignment=None)
    robot = read_robot_from_dataset(recipe.data.datasets[0], policy)
    told = {name: value for name, value in vars(recipe.robot).items() if value is not None}
    print("\n".join(format_robot_comparison(policy, robot | told)))
    config_for_robot(policy, robot | told)
    words = ["--recipe", arguments.recipe, "--policy", arguments.base, "--dataset", arguments.dataset]
    words += ["--out", str(arguments.out), *(["--dry-run"] * arguments.dry_run), *(["--resume"] * arguments.resume)]
    robot_changes = [f"robot.{name}={json.dumps(value)}" for name, value in robot.items() if name not in told]
    for change in [*robot_changes, *arguments.set]:
        words += ["--set", change]
    return train.main(words)
