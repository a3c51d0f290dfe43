"""Train a LoRA adapter of a policy for a new robot, with the cameras, state and actions of its LeRobot dataset.

    rocket-hf adapt you/base@v1 --dataset you/new-robot --out runs/new-robot
    rocket-hf publish runs/new-robot --adapter --repo you/new-robot-adapter

Flags of `accelerate launch`, such as --num_processes 2, start several processes: see `rocket-hf train --help`.
"""

import argparse
from pathlib import Path

from rocket_hf.errors import UserError
from rocket_hf.training.arguments import add_run_arguments, training_words

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
    chosen = {"policy": arguments.base, "dataset": [arguments.dataset], "teacher": None, "cache": []}
    words = training_words(argparse.Namespace(**vars(arguments) | chosen))
    return launch_training(flags, words) if flags else train.main(words)
