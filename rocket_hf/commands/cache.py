"""Stores a teacher's features of every frame of a LeRobot dataset, so that training need not compute them again.

    rocket-hf cache build you/robot-data@v1 --teacher facebook/VGGT-1B --out features --storage int8
    accelerate launch -m rocket_hf.commands cache build ...      # on several devices; each takes its share

A build may be stopped at any moment; the same command goes on where it stopped.
"""

import argparse
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rocket_hf.errors import UserError

from .arguments import numbers, positive, resolution

if TYPE_CHECKING:
    from rocket_hf.teachers.cache_manifest import Manifest
    from rocket_hf.teachers.teacher import Teacher

HELP = "store a teacher's features of a dataset"
STORAGES = {
    "bf16": "2 bytes a number",
    "int8": "1 byte, with a scale per token",
    "projected": "1 byte, of --width principal components",
}
DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_build_arguments(actions.add_parser("build", help="compute and store the features"))
    info = actions.add_parser("info", help="say what a cache holds, and how much of it is there")
    verify = actions.add_parser("verify", help="read all of a cache and name what is corrupt")
    for action in (info, verify):
        action.add_argument("folder", metavar="FOLDER", type=Path)


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="a LeRobot dataset: a folder, or a Hub id[@revision]")
    parser.add_argument("--teacher", required=True, help="a folder, a Hub id[@revision], or `embedded`: a small one")
    parser.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="a new folder, or one to go on with")
    parser.add_argument(
        "--layers", type=numbers, help="as in 3,5,-1 (default for VGGT: those of ROCKET, or all of a small one)"
    )
    parser.add_argument(
        "--cameras", type=words, help="the dataset's keys, best in the policy's order (default: all of color)"
    )
    parser.add_argument(
        "--resolution", type=resolution, default="camera", help='"camera" (default), "teacher" or a side in pixels'
    )
    listed = "; ".join(f"{name}: {phrase}" for name, phrase in STORAGES.items())
    parser.add_argument("--storage", choices=STORAGES, default="bf16", metavar="STORAGE", help=listed)
    parser.add_argument("--width", type=int, default=256, help="of projected features (default: 256)")
    parser.add_argument("--grid", type=grid, metavar="ROWSxCOLUMNS", help="to resample to (default: the teacher's own)")
    parser.add_argument("--batch-size", type=positive, default=8, help="frames at a time (default: 8)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read pictures (default: 2)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the teacher (default: float32 on a CPU, else bfloat16)")
    parser.add_argument("--device", help="(default: that of the accelerate process)")
    parser.add_argument("--compile", action="store_true", help="compile the teacher first")


def words(text: str) -> list[str]:
    return text.split(",")


def grid(text: str) -> tuple[int, int]:
    rows, columns = (positive(word) for word in text.split("x"))
    return rows, columns


def run(arguments: argparse.Namespace) -> int:
    return {"build": build, "info": info, "verify": verify}[arguments.action](arguments)


def build(arguments: argparse.Namespace) -> int:
    import torch
    from accelerate import PartialState

    from rocket_hf.teachers.cache_writer import CacheWriter, plan_cache
    from rocket_hf.teachers.license import license_note
    from rocket_hf.teachers.load import load_teacher
    from rocket_hf.training.data.dataset_frames import DatasetFrames

    state = PartialState(cpu=arguments.device == "cpu", timeout=timedelta(days=1))  # the others await the projection
    device = torch.device(arguments.device) if arguments.device else state.device
    dtype = arguments.dtype or ("float32" if device.type == "cpu" else "bfloat16")
    name, _, revision = arguments.teacher.partition("@")
    with state.local_main_process_first():  # it fetches what the others find
        frames = DatasetFrames(arguments.dataset, arguments.cameras)
        teacher = load_teacher(name, revision or None, arguments.resolution, dtype, device, arguments.compile)
    layers = chosen_layers(arguments.layers, teacher)
    plan = plan_cache(frames, teacher, layers, arguments.storage, arguments.width, arguments.grid)
    writer = CacheWriter(
        arguments.out, plan, frames, teacher, arguments.batch_size, arguments.workers,
        state.process_index, state.num_processes,
    )  # fmt: skip
    if state.is_main_process:
        if note := license_note(teacher.card.name, teacher.card.license):
            print(note)
        writer.prepare()
    state.wait_for_everyone()
    writer.write()
    if state.is_main_process:
        print(f"finished   {len(frames):,} frames in {arguments.out}")
        words = f"--teacher {arguments.teacher} --cache {arguments.out}"
        print(f"to train   accelerate launch training/train.py ... {words}")
    return 0


def chosen_layers(given: list[int] | None, teacher: "Teacher") -> list[int]:
    """By default ROCKET's for VGGT, all of a VGGT that has no such layers; of another it is not known which are worth
    aligning."""
    from rocket_hf.modeling.configuration_rocket import AlignmentConfig
    from rocket_hf.teachers.vggt import VggtTeacher

    if given:
        return given
    if isinstance(teacher, VggtTeacher):
        published = list(AlignmentConfig().teacher_layers)
        return published if max(published) <= teacher.card.depth else list(range(1, teacher.card.depth + 1))
    raise UserError(f"name the layers of {teacher.card.name} to store, of 1..{teacher.card.depth}: --layers 4,8,-1")


def info(arguments: argparse.Namespace) -> int:
    from rocket_hf.teachers.cache_manifest import Manifest
    from rocket_hf.teachers.cache_shards import finished_shards

    manifest = Manifest.load(arguments.folder)
    finished = finished_shards(arguments.folder, manifest)
    for name, said in described(manifest, finished):
        print(f"{name:12s}{said}")
    return 0


def described(manifest: "Manifest", finished: set[int]) -> list[tuple[str, str]]:
    from rocket_hf.teachers.cache_writer import in_units

    rows = sum(len(manifest.shard_rows(number)) for number in finished)
    layers = ", ".join(map(str, manifest.layers))
    storage = f"{manifest.storage}, {manifest.width} numbers a token, {in_units(manifest.row_bytes)} a frame"
    table = [
        ("dataset", f"{manifest.dataset}@{manifest.revision}"),
        ("cameras", ", ".join(manifest.cameras)),
        ("teacher", f"{manifest.teacher} ({manifest.weights[:12]}) in {manifest.dtype}"),
        ("license", manifest.license),
        ("layers", f"{layers} of {manifest.depth}"),
        ("pictures", "{} x {} pixels (height x width)".format(*manifest.input_size)),
        ("grid", "{} x {} patches".format(*manifest.grid)),
        ("storage", storage),
        ("frames", f"{rows:,} of {manifest.rows:,}, in {len(finished)} of {manifest.shards} shards"),
        ("size", f"{in_units(rows * manifest.row_bytes)} of {in_units(manifest.rows * manifest.row_bytes)}"),
        ("fingerprint", manifest.fingerprint[:12]),
    ]
    if manifest.kept:
        table.insert(8, ("kept", ", ".join(f"{share:.2%}" for share in manifest.kept) + " of the variance, by layer"))
    return table


def verify(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from rocket_hf.teachers.cache_manifest import Manifest
    from rocket_hf.teachers.cache_shards import verify_shard

    manifest = Manifest.load(arguments.folder)
    wrong = []
    for number in tqdm(range(manifest.shards), desc="shards", unit="", disable=None, leave=False):
        try:
            verify_shard(arguments.folder, manifest, number)
        except ValueError as error:
            wrong.append(str(error))
    for sentence in wrong:
        print(f"rocket-hf cache: {sentence}", file=sys.stderr)
    if wrong:
        return 2
    print(f"verified   {manifest.shards} shards, {manifest.rows:,} frames")
    return 0
