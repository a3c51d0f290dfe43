"""Command-line options of training, shared by `training/train.py` and `rocket-hf train`. Imports nothing heavy."""

import argparse
from pathlib import Path


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="rocket", help="name of a recipe, or a YAML file (default: %(default)s)")
    parser.add_argument("--policy", help="folder or Hub id (owner/name@revision) of the policy to train")
    parser.add_argument(
        "--dataset", action="append", default=[], help="folder or Hub id of a LeRobot dataset; repeatable"
    )
    parser.add_argument("--teacher", help="folder or Hub id of the 3D vision model")
    parser.add_argument("--cache", action="append", default=[], help="feature cache folder; once per dataset")
    parser.add_argument("--out", type=Path, help="output folder of the run (default: runs/RECIPE)")
    add_run_arguments(parser)


def training_words(arguments: argparse.Namespace) -> list[str]:
    """Return the command-line words from which `add_training_arguments` parses these arguments."""
    words = ["--recipe", arguments.recipe]
    for name in ("policy", "teacher", "out"):
        value = getattr(arguments, name)
        words += [f"--{name}={value}"] if value is not None else []
    for name in ("dataset", "cache", "set"):
        words += [f"--{name}={value}" for value in getattr(arguments, name)]
    return [*words, *["--dry-run"] * arguments.dry_run, *["--resume"] * arguments.resume]


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that `rocket-hf adapt` has too."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the recipe; repeatable"
    )
    parser.add_argument("--dry-run", action="store_true", help="print data, trained weights and cost, then exit")
    parser.add_argument("--resume", action="store_true", help="resume the run in --out from its last checkpoint")
