"""The main job from nothing: demonstrations of four simulated tasks, a small policy trained with and without ROCKET,
rollouts of both on held-out starts, the aligned one published and loaded back, and a report of one page.

Without a download, in at most 10 minutes on two CPU cores. Interrupt it whenever you like; the same command goes on.
"""

import argparse
from pathlib import Path

from .arguments import require_at_least_one

HELP = "simulate, train, evaluate and publish on this machine, without a download"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=20, help="demonstrations of each task (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=320, help="training steps of each policy (default: %(default)s)")
    parser.add_argument("--rollouts", type=int, default=10, help="of each task and policy (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes of the simulator (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from rocket_hf.study.demo import Demo
    from rocket_hf.study.demo_report import summary, write_report

    sizes = {name: getattr(arguments, name) for name in ("episodes", "steps", "rollouts")}
    require_at_least_one(arguments, *sizes, "workers")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    demo = Demo(arguments.out, sizes, programs(), arguments.workers)
    found = demo()
    write_report(arguments.out, found)
    print(summary(arguments.out, found))
    return 0


def programs() -> dict:
    from rocket_hf.commands import main
    from rocket_hf.training import train

    return {"rocket-hf": main, "accelerate launch training/train.py": train.main}
