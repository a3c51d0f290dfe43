"""Records demonstrations of a simulator's scripted experts as a LeRobot dataset.

    rocket-hf simulate metaworld --tasks drawer-open-v3 window-open-v3 --episodes 20 --out demonstrations
    rocket-hf simulate vizdoom --rooms 300 --out rooms

Run it again after an interruption, with the same arguments: it goes on.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rocket_hf.errors import UserError

if TYPE_CHECKING:
    from rocket_hf.sims.demonstrations import Recorded

HELP = "record demonstrations in a simulated world as a LeRobot dataset"
IMAGE_SIZE, VIEWS = 128, 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", metavar="SUITE", help="metaworld, libero or vizdoom")
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="names or groups: easy, hard, libero_spatial, all, ... (not of vizdoom)",
    )
    parser.add_argument("--episodes", type=int, metavar="N", help="of each task (not of vizdoom)")
    parser.add_argument("--rooms", type=int, metavar="N", help="vizdoom: each with a way to each of its four objects")
    parser.add_argument("--views", type=int, metavar="N", help="vizdoom: from anywhere in each room (default: 16)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the dataset to write")
    parser.add_argument("--depth", action="store_true", help="record depth in meters and the cameras' poses too")
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="simulators at a time (default: %(default)s)"
    )
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="default: 128")
    parser.add_argument("--seed", type=int, default=0, help="of the first start of each task (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    require_own_options(arguments)
    start = time.perf_counter()
    try:
        recorded = rooms(arguments) if arguments.suite == "vizdoom" else demonstrations(arguments)
    except KeyboardInterrupt:
        print(
            f"\nrocket-hf simulate: interrupted: run the same command again to go on with {arguments.out}",
            file=sys.stderr,
        )
        return 130
    print_table(recorded, arguments, time.perf_counter() - start)
    return 0


def require_own_options(arguments: argparse.Namespace) -> None:
    """Of the suite: all that it needs and nothing of the others."""
    of_tasks, of_rooms = ["tasks", "episodes"], ["rooms", "views"]
    needed, others = (["rooms"], of_tasks) if arguments.suite == "vizdoom" else (of_tasks, of_rooms)
    for name in needed:
        if getattr(arguments, name) is None:
            raise UserError(f"{arguments.suite} needs --{name}")
    for name in others:
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} is not for {arguments.suite}: it has --{' and --'.join(needed)}")
    if arguments.suite == "vizdoom" and (arguments.depth or arguments.image_size is not None):
        raise UserError("vizdoom has no --depth and no --image-size: its pictures are 60 x 80 pixels")


def demonstrations(arguments: argparse.Namespace) -> "Recorded":
    from rocket_hf.sims.demonstrations import record
    from rocket_hf.sims.suites import chosen_tasks

    return record(
        arguments.out,
        arguments.suite,
        chosen_tasks(arguments.suite, arguments.tasks),
        arguments.episodes,
        arguments.image_size or IMAGE_SIZE,
        arguments.depth,
        arguments.workers,
        arguments.seed,
    )


def rooms(arguments: argparse.Namespace) -> "Recorded":
    from rocket_hf.sims.vizdoom.recording import record_rooms

    views = VIEWS if arguments.views is None else arguments.views
    return record_rooms(arguments.out, arguments.rooms, views, arguments.workers, arguments.seed)


def print_table(recorded: "Recorded", arguments: argparse.Namespace, seconds: float) -> None:
    width = max(len(task) for task in recorded.frames_by_task)
    print(f"{'task':{width}}  episodes  frames  dropped")
    for task, episodes in recorded.episodes_by_task.items():
        frames, dropped = recorded.frames_by_task[task], recorded.dropped_by_task[task]
        print(f"{task:{width}}  {episodes:8}  {frames:6}  {dropped:7}")
    print(f"{'all':{width}}  {recorded.episodes:8}  {recorded.frames:6}  {recorded.dropped:7}")
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"\n{arguments.out}: {size / 1e6:.1f} MB in {seconds:.0f} s")
    if arguments.suite == "vizdoom":
        print(f"next: rocket-hf pretrain-encoder {arguments.out} --out eyes")
    else:
        print(f"next: rocket-hf adapt POLICY --dataset {arguments.out}")
