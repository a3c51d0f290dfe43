"""Compare alignment variants: train them with equal budgets and several seeds, and evaluate them on the same episodes.

    rocket-hf ablate --data runs/demo --seeds 3

The results are written to report.md, report.json, table.csv and plots. The training data is that of a demo (--data), or
is recorded first. The command may be interrupted at any time and resumes when it is repeated; repeated with more seeds
or recipes, it adds them. Each line of progress shows the remaining phases and their estimated duration.
"""

import argparse
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError

from .arguments import require_at_least_one

HELP = "compare alignment variants over several seeds"
VARIANTS = "none,spatial-forcing,naive,shared,rocket"
EPISODES = 20
SIZES = ("steps", "rollouts", "depth_episodes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipes", default=VARIANTS, help="recipe names or YAML files, separated by commas (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="training runs per recipe (default: %(default)s)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="folder of a demo whose data is used (default: record data in --out)",
    )
    parser.add_argument(
        "--episodes", type=int, help=f"number of demonstrations per task without --data (default: {EPISODES})"
    )
    parser.add_argument("--steps", type=int, default=400, help="training steps per run (default: %(default)s)")
    parser.add_argument(
        "--rollouts", type=int, default=25, help="number of rollouts per task and policy (default: %(default)s)"
    )
    parser.add_argument(
        "--depth-episodes",
        type=int,
        default=12,
        metavar="N",
        help="number of episodes per task for the depth probe (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=2, help="number of simulator processes (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/ablation"), help="folder of the ablation (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    from rocket_hf.folder_lock import FolderLock
    from rocket_hf.study.ablation import Ablation
    from rocket_hf.study.ablation_report import format_ablation_summary, write_ablation_report

    sizes = read_sizes(arguments)
    recipes = [name for name in arguments.recipes.split(",") if name]
    with FolderLock(arguments.out):
        ablation = Ablation(
            arguments.out, recipes, arguments.seeds, sizes, arguments.data, programs(), workers=arguments.workers
        )
        ablation(write_ablation_report)
    print(format_ablation_summary(ablation))
    return 0


def read_sizes(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.data is not None and arguments.episodes is not None:
        raise UserError("--episodes is for newly recorded data and --data for existing data: pass only one of them")
    episodes = None
    if arguments.data is None:
        episodes = EPISODES if arguments.episodes is None else arguments.episodes
    sizes = {"episodes": episodes, **{name: getattr(arguments, name) for name in SIZES}}
    require_at_least_one(arguments, *sizes, "seeds", "workers")
    if not arguments.recipes.strip(","):
        raise UserError(f"--recipes contains no recipe: list recipes separated by commas, for example {VARIANTS}")
    return sizes


def programs() -> dict:
    from rocket_hf.commands import main
    from rocket_hf.study.ablation_training import train_in_child

    return {"rocket-hf": main, "accelerate launch training/train.py": train_in_child}
