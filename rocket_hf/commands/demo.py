"""Run the whole workflow on this machine, without a download, in at most 10 minutes on two CPU cores.

The demo records demonstrations of four simulated tasks, trains a small policy with and without ROCKET, evaluates both
on held-out episodes, publishes the aligned policy to a folder, loads it again, and writes a report. It may be
interrupted at any time and resumes when the command is repeated.
"""

import argparse
from pathlib import Path

from .arguments import require_at_least_one

HELP = "run the whole workflow on this machine in 10 minutes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the demo (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=20, help="demonstrations per task (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=320, help="training steps per policy (default: %(default)s)")
    parser.add_argument("--rollouts", type=int, default=10, help="rollouts per task and policy (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="number of simulator processes (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from rocket_hf.folder_lock import FolderLock
    from rocket_hf.study.demo import Demo
    from rocket_hf.study.demo_report import format_demo_summary, write_demo_report

    sizes = {name: getattr(arguments, name) for name in ("episodes", "steps", "rollouts")}
    require_at_least_one(arguments, *sizes, "workers")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with FolderLock(arguments.out):
        demo = Demo(arguments.out, sizes, programs(), arguments.workers)
        results = demo()
        write_demo_report(arguments.out, results)
    print(format_demo_summary(arguments.out, results))
    return 0


def programs() -> dict:
    from rocket_hf.commands import main
    from rocket_hf.training import train

    return {"rocket-hf": main, "accelerate launch training/train.py": train.main}
