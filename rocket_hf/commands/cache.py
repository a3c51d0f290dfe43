"""Store a teacher's features of every frame of a LeRobot dataset, so that training need not compute them.

    rocket-hf cache build you/robot-data@v1 --teacher facebook/VGGT-1B --out features --storage int8
    accelerate launch -m rocket_hf.commands cache build ...      # on several devices, which share the frames

A build can be stopped at any time. Run the same command again to resume it.
"""

import argparse
import sys
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rocket_hf.errors import UserError

from .arguments import image_resolution, integer_list, positive_integer, require_device

if TYPE_CHECKING:
    import torch

    from rocket_hf.teachers.cache_manifest import Manifest
    from rocket_hf.teachers.cache_writer import FrameSource
    from rocket_hf.teachers.teacher import Teacher

HELP = "store a teacher's features of a dataset"
STORAGES = {
    "bf16": "2 bytes per number",
    "int8": "1 byte per number, with one scale per token",
    "projected": "int8 of --width principal components",
}
DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_build_arguments(actions.add_parser("build", help="compute and store the features of a dataset"))
    info = actions.add_parser("info", help="print the contents of a cache and how much of it is finished")
    verify = actions.add_parser("verify", help="read a whole cache and list its missing and corrupt files")
    for action in (info, verify):
        action.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the cache")


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="LeRobot dataset: folder or Hub id OWNER/NAME[@REVISION]")
    parser.add_argument(
        "--teacher",
        required=True,
        help="teacher: a folder, a Hub id OWNER/NAME[@REVISION], `embedded` for the small one in this package, "
        "`embedded-untrained` for its random weights, or `oracle` for the world coordinates of a dataset with depth",
    )
    parser.add_argument(
        "--out", required=True, metavar="FOLDER", type=Path, help="new folder for the cache, or an unfinished one"
    )
    parser.add_argument(
        "--layers",
        type=integer_list,
        help="teacher layers to store, such as 3,5,-1 (default for VGGT: the layers of ROCKET's recipe, or all layers "
        "of a small VGGT and of the oracle; required for other teachers)",
    )
    parser.add_argument(
        "--cameras",
        type=camera_keys,
        help="comma-separated camera keys of the dataset, best in the policy's order (default: all color cameras)",
    )
    parser.add_argument(
        "--resolution",
        type=image_resolution,
        default="camera",
        help='size of the teacher\'s input images: "camera" (default), "teacher", or the longer side in pixels',
    )
    storages = "; ".join(f"{name}: {description}" for name, description in STORAGES.items())
    parser.add_argument(
        "--storage",
        choices=STORAGES,
        default="bf16",
        metavar="STORAGE",
        help=f"storage format (default: bf16). {storages}",
    )
    parser.add_argument("--width", type=int, default=256, help="dimension of projected features (default: 256)")
    parser.add_argument(
        "--grid", type=grid, metavar="ROWSxCOLUMNS", help="patch grid to resample to (default: the teacher's own grid)"
    )
    parser.add_argument("--batch-size", type=positive_integer, default=8, help="frames per batch (default: 8)")
    parser.add_argument("--workers", type=int, default=2, help="number of processes that read images (default: 2)")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="dtype of the teacher (default: float32 on a CPU, otherwise bfloat16)"
    )
    parser.add_argument("--device", help="torch device of the teacher (default: the device of the accelerate process)")
    parser.add_argument("--compile", action="store_true", help="run the teacher's blocks through torch.compile")


def camera_keys(text: str) -> list[str]:
    return text.split(",")


def grid(text: str) -> tuple[int, int]:
    rows, columns = (positive_integer(side) for side in text.split("x"))
    return rows, columns


def run(arguments: argparse.Namespace) -> int:
    return {"build": build, "info": info, "verify": verify}[arguments.action](arguments)


def build(arguments: argparse.Namespace) -> int:
    import torch
    from accelerate import PartialState

    from rocket_hf.folder_lock import FolderLock
    from rocket_hf.teachers.cache_writer import CacheWriter, plan_cache
    from rocket_hf.teachers.license import license_note

    if arguments.device is not None:
        require_device(arguments.device)
    if arguments.workers < 0:
        raise UserError(f"--workers must be at least 0, got {arguments.workers}")
    # The other processes wait while the main process computes the projection, which can take hours.
    state = PartialState(cpu=arguments.device == "cpu", timeout=timedelta(days=1))
    device = torch.device(arguments.device) if arguments.device is not None else state.device
    with state.local_main_process_first():  # downloads once; the other processes then find the files in the Hub's cache
        frames, teacher = open_source(arguments, device)
    layers = choose_layers(arguments.layers, teacher)
    plan = plan_cache(frames, teacher, layers, arguments.storage, arguments.width, arguments.grid)
    writer = CacheWriter(
        arguments.out, plan, frames, teacher, arguments.batch_size, arguments.workers,
        state.process_index, state.num_processes,
    )  # fmt: skip
    with FolderLock(arguments.out) if state.is_main_process else nullcontext():
        if state.is_main_process:
            if note := license_note(teacher.card.name, teacher.card.license):
                print(note)
            writer.prepare(estimates_time=True)
        state.wait_for_everyone()
        writer.write()
    if state.is_main_process:
        print(f"finished   {len(frames):,} frames in {arguments.out}")
        options = f"--teacher {arguments.teacher} --cache {arguments.out}"
        print(f"next       accelerate launch training/train.py ... {options}")
    return 0


def open_source(arguments: argparse.Namespace, device: "torch.device") -> tuple["FrameSource", "Teacher"]:
    """Open the dataset and load the teacher. The oracle reads depth instead of images."""
    from rocket_hf.teachers.load import load_teacher
    from rocket_hf.teachers.oracle import ORACLE, OracleTeacher
    from rocket_hf.training.data.dataset_frames import DatasetFrames
    from rocket_hf.training.data.world_points import WorldPointFrames

    if arguments.teacher == ORACLE:
        if arguments.resolution != "camera":
            raise UserError(f"the teacher {ORACLE} reads depth in the size of the cameras: remove --resolution")
        return WorldPointFrames(arguments.dataset, arguments.cameras), OracleTeacher(device)
    dtype = arguments.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    name, _, revision = arguments.teacher.partition("@")
    frames = DatasetFrames(arguments.dataset, arguments.cameras)
    return frames, load_teacher(name, revision or None, arguments.resolution, dtype, device, arguments.compile)


def choose_layers(requested: list[int] | None, teacher: "Teacher") -> list[int]:
    """Return the requested layers; by default the layers of ROCKET's recipe, or all layers of a small teacher of ours.

    For other teachers no layers are known to be useful, so the user has to choose them.
    """
    from rocket_hf.modeling.configuration_rocket import AlignmentConfig
    from rocket_hf.teachers.oracle import OracleTeacher
    from rocket_hf.teachers.vggt import VggtTeacher

    if requested:
        return requested
    if isinstance(teacher, VggtTeacher | OracleTeacher):
        published = list(AlignmentConfig().teacher_layers)
        return published if max(published) <= teacher.card.depth else list(range(1, teacher.card.depth + 1))
    raise UserError(
        f"choose the layers of {teacher.card.name} to store with --layers, from 1..{teacher.card.depth}, such as "
        f"--layers 1,{teacher.card.depth}"
    )


def info(arguments: argparse.Namespace) -> int:
    from rocket_hf.teachers.cache_manifest import Manifest
    from rocket_hf.teachers.cache_shards import finished_shards

    manifest = Manifest.load(arguments.folder)
    for name, value in describe_cache(manifest, finished_shards(arguments.folder, manifest)):
        print(f"{name:12s}{value}")
    return 0


def describe_cache(manifest: "Manifest", finished: set[int]) -> list[tuple[str, str]]:
    from rocket_hf.formatting import format_bytes

    rows = sum(len(manifest.shard_rows(number)) for number in finished)
    layers = ", ".join(map(str, manifest.layers))
    storage = f"{manifest.storage}, {manifest.width} numbers per token, {format_bytes(manifest.row_bytes)} per frame"
    lines = [
        ("dataset", f"{manifest.dataset}@{manifest.revision}"),
        ("cameras", ", ".join(manifest.cameras)),
        ("teacher", f"{manifest.teacher} ({manifest.weights[:12]}) in {manifest.dtype}"),
        ("license", manifest.license),
        ("layers", f"{layers} of {manifest.depth}"),
        ("images", "{} x {} pixels (height x width)".format(*manifest.input_size)),
        ("grid", "{} x {} patches".format(*manifest.grid)),
        ("storage", storage),
        ("frames", f"{rows:,} of {manifest.rows:,}, in {len(finished)} of {manifest.shards} shards"),
        ("size", f"{format_bytes(rows * manifest.row_bytes)} of {format_bytes(manifest.rows * manifest.row_bytes)}"),
        ("fingerprint", manifest.fingerprint[:12]),
    ]
    if manifest.kept:
        kept = ", ".join(f"{share:.2%}" for share in manifest.kept)
        lines.insert(8, ("variance", f"the projection keeps {kept} for each layer"))
    return lines


def verify(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from rocket_hf.teachers.cache_manifest import Manifest
    from rocket_hf.teachers.cache_shards import existing_shards, verify_shard
    from rocket_hf.teachers.projection import verify_projection

    folder, manifest = arguments.folder, Manifest.load(arguments.folder)
    present = sorted(existing_shards(folder, manifest))
    checks = [partial(verify_shard, folder, manifest, number) for number in present]
    if manifest.projection is not None:
        checks.append(partial(verify_projection, folder, manifest))
    messages = []
    if missing := manifest.shards - len(present):
        messages.append(
            f"{folder} is incomplete, {missing} of {manifest.shards} shards are missing: run the same "
            "`rocket-hf cache build` again to complete it"
        )
    for check in tqdm(checks, desc="files", unit="", disable=None, leave=False):
        try:
            check()
        except UserError as error:
            messages.append(str(error))
    for message in messages:
        print(f"rocket-hf cache: {message}", file=sys.stderr)
    if messages:
        return 2
    print(f"verified   {manifest.shards} shards, {manifest.rows:,} frames")
    return 0
