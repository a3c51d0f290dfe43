"""Trains the variants of alignment with equal budgets and several seeds, evaluates them on the same held-out starts,
and writes one table (report.md, report.json, table.csv) and its plots.

    rocket-hf ablate --data runs/demo --seeds 3

With the data of a demo, or its own. Kill it whenever you like: the same command goes on, and with more seeds or recipes
than before it adds those. Each line that it prints says how many phases are left and about how long they take.
"""

import argparse
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError

from .arguments import require_at_least_one

HELP = "the variants of alignment side by side"
VARIANTS = "none,spatial-forcing,naive,shared,rocket"
EPISODES = 20
SIZES = ("steps", "rollouts", "depth_episodes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipes", default=VARIANTS, help="names or YAML files, by commas (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each recipe (default: %(default)s)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="of a demo (default: its data is made here)")
    parser.add_argument(
        "--episodes", type=int, help=f"demonstrations of each task, without --data (default: {EPISODES})"
    )
    parser.add_argument("--steps", type=int, default=400, help="of each training (default: %(default)s)")
    parser.add_argument("--rollouts", type=int, default=25, help="of each task and policy (default: %(default)s)")
    parser.add_argument(
        "--depth-episodes",
        type=int,
        default=12,
        metavar="N",
        help="of each task to probe depth on (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of the simulator (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    from rocket_hf.study.ablation import Ablation
    from rocket_hf.study.ablation_report import summary, write_report

    sizes = read_sizes(arguments)
    recipes = [name for name in arguments.recipes.split(",") if name]
    ablation = Ablation(
        arguments.out, recipes, arguments.seeds, sizes, arguments.data, programs(), workers=arguments.workers
    )
    ablation(write_report)
    print(summary(ablation))
    return 0


def read_sizes(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.data is not None and arguments.episodes is not None:
        raise UserError("--episodes are of data that is made here, and --data has its own: give one of the two")
    episodes = (
        None if arguments.data is not None else arguments.episodes if arguments.episodes is not None else EPISODES
    )
    sizes = {"episodes": episodes, **{name: getattr(arguments, name) for name in SIZES}}
    require_at_least_one(arguments, *sizes, "seeds", "workers")
    if not arguments.recipes.strip(","):
        raise UserError(f"--recipes names no recipe: give some by commas, for instance {VARIANTS}")
    return sizes


def programs() -> dict:
    from rocket_hf.commands import main
    from rocket_hf.study.ablation_training import train_in_child

    return {"rocket-hf": main, "accelerate launch training/train.py": train_in_child}
