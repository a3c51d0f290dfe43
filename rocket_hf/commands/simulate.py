"""Record demonstrations of a simulator's scripted experts as a LeRobot dataset.

    rocket-hf simulate metaworld --tasks drawer-open-v3 window-open-v3 --episodes 20 --out demonstrations
    rocket-hf simulate 'metaworld:heights=0..0.12,cameras=corner2' --tasks drawer-open-v3 --episodes 20 --out raised
    rocket-hf simulate vizdoom --rooms 300 --out rooms

After an interruption, run the same command again to resume the recording.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rocket_hf.errors import UserError

if TYPE_CHECKING:
    from rocket_hf.sims.recording import RecordingProgress

HELP = "record demonstrations in a simulator as a LeRobot dataset"
IMAGE_SIZE, VIEWS = 128, 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "suite",
        metavar="ENVIRONMENT",
        help="simulator: metaworld, libero or vizdoom; metaworld with settings: metaworld:SETTING=VALUE,...",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="names of tasks or groups of tasks: easy, hard, libero_spatial, all, ... (not for vizdoom)",
    )
    parser.add_argument("--episodes", type=int, metavar="N", help="number of episodes per task (not for vizdoom)")
    parser.add_argument(
        "--rooms", type=int, metavar="N", help="number of rooms, each with one episode per object (only for vizdoom)"
    )
    parser.add_argument(
        "--views", type=int, metavar="N", help=f"number of random views per room (only for vizdoom, default: {VIEWS})"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the dataset")
    parser.add_argument("--depth", action="store_true", help="also record depth in meters and camera poses")
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="number of simulator processes (default: %(default)s)"
    )
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help=f"side of the square images (default: {IMAGE_SIZE})"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of each task's first episode, or of the first room; later ones increment it (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    check_options(arguments)
    start = time.perf_counter()
    try:
        progress = record_vizdoom(arguments) if arguments.suite == "vizdoom" else record_demonstrations(arguments)
    except KeyboardInterrupt:
        print(
            f"\nrocket-hf simulate: interrupted. Run the same command again to resume {arguments.out}.",
            file=sys.stderr,
        )
        return 130
    print_table(progress, arguments, time.perf_counter() - start)
    return 0


def check_options(arguments: argparse.Namespace) -> None:
    """Require all options that the suite needs, and none of the other suites."""
    from rocket_hf.sims.settings import parse_environment_name

    arguments.suite = parse_environment_name(arguments.suite).name
    task_options, room_options = ["tasks", "episodes"], ["rooms", "views"]
    is_vizdoom = arguments.suite == "vizdoom"
    required, unsupported = (["rooms"], task_options) if is_vizdoom else (task_options, room_options)
    for name in required:
        if getattr(arguments, name) is None:
            raise UserError(f"{arguments.suite} needs the option --{name}")
    for name in unsupported:
        if getattr(arguments, name) is not None:
            raise UserError(f"{arguments.suite} does not support --{name}: use --{' and --'.join(required)}")
    if is_vizdoom and (arguments.depth or arguments.image_size is not None):
        raise UserError("vizdoom does not support --depth and --image-size: its images are 60 x 80 pixels")


def record_demonstrations(arguments: argparse.Namespace) -> "RecordingProgress":
    from rocket_hf.sims.demonstrations import record
    from rocket_hf.sims.suites import select_tasks

    return record(
        arguments.out,
        arguments.suite,
        select_tasks(arguments.suite, arguments.tasks),
        arguments.episodes,
        IMAGE_SIZE if arguments.image_size is None else arguments.image_size,
        arguments.depth,
        arguments.workers,
        arguments.seed,
    )


def record_vizdoom(arguments: argparse.Namespace) -> "RecordingProgress":
    from rocket_hf.sims.vizdoom.recording import record_rooms

    views = VIEWS if arguments.views is None else arguments.views
    return record_rooms(arguments.out, arguments.rooms, views, arguments.workers, arguments.seed)


def print_table(progress: "RecordingProgress", arguments: argparse.Namespace, seconds: float) -> None:
    width = max(len(task) for task in progress.frames_by_task)
    print(f"{'task':{width}}  episodes  frames  failed attempts")
    for task, episodes in progress.episodes_by_task.items():
        frames, dropped = progress.frames_by_task[task], progress.dropped_by_task[task]
        print(f"{task:{width}}  {episodes:8}  {frames:6}  {dropped:15}")
    print(f"{'all':{width}}  {progress.episodes:8}  {progress.frames:6}  {progress.dropped:15}")
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"\nrecorded   {arguments.out}: {size / 1e6:.1f} MB in {seconds:.0f} s")
    if arguments.suite == "vizdoom":
        print(f"next       rocket-hf pretrain-encoder {arguments.out} --out encoder")
    else:
        print(f"next       rocket-hf adapt POLICY --dataset {arguments.out}")
