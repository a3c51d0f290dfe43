"""Records demonstrations of a simulator's scripted experts as a LeRobot dataset.

    rocket-hf simulate metaworld --tasks drawer-open-v3 window-open-v3 --episodes 20 --out demonstrations

Run it again after an interruption, with the same arguments: it goes on.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rocket_hf.sims.demonstrations import Recorded

HELP = "record demonstrations in a simulated world as a LeRobot dataset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", metavar="SUITE", help="metaworld or libero")
    parser.add_argument(
        "--tasks",
        required=True,
        nargs="+",
        metavar="TASK",
        help="names or groups: easy, hard, libero_spatial, all, ...",
    )
    parser.add_argument("--episodes", type=int, required=True, metavar="N", help="of each task")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the dataset to write")
    parser.add_argument("--depth", action="store_true", help="record depth in metres and the cameras' poses too")
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="simulators at a time (default: %(default)s)"
    )
    parser.add_argument("--image-size", type=int, default=128, metavar="PIXELS", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the first start of each task (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    from rocket_hf.sims.demonstrations import record
    from rocket_hf.sims.suites import chosen_tasks

    tasks = chosen_tasks(arguments.suite, arguments.tasks)
    start = time.perf_counter()
    try:
        recorded = record(
            arguments.out,
            arguments.suite,
            tasks,
            arguments.episodes,
            arguments.image_size,
            arguments.depth,
            arguments.workers,
            arguments.seed,
        )
    except KeyboardInterrupt:
        print(
            f"\nrocket-hf simulate: interrupted: run the same command again to go on with {arguments.out}",
            file=sys.stderr,
        )
        return 130
    print_table(recorded, arguments, time.perf_counter() - start)
    return 0


def print_table(recorded: "Recorded", arguments: argparse.Namespace, seconds: float) -> None:
    width = max(len(task) for task in recorded.frames_by_task)
    print(f"{'task':{width}}  episodes  frames  dropped")
    for task, frames in recorded.frames_by_task.items():
        print(f"{task:{width}}  {arguments.episodes:8}  {frames:6}  {recorded.dropped_by_task[task]:7}")
    print(f"{'all':{width}}  {recorded.episodes:8}  {recorded.frames:6}  {recorded.dropped:7}")
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"\n{arguments.out}: {size / 1e6:.1f} MB in {seconds:.0f} s")
    print(f"next: rocket-hf adapt POLICY --dataset {arguments.out}")
