"""Train and evaluate many policies as a study file describes, and report what its comparisons show over seeds.

    rocket-hf study run studies/alignment.yaml --out runs/study
    rocket-hf study report runs/study

A study compares training methods with several training seeds per method. It may be interrupted at any time, and resumes
when the command is repeated. The report covers what is complete.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rocket_hf.errors import UserError

from .arguments import positive_integer

if TYPE_CHECKING:
    from rocket_hf.study.study_file import Study

HELP = "compare training methods over several seeds, as a study file describes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add_run_arguments(actions.add_parser("run", help="run or resume a study"))
    report = actions.add_parser("report", help="write tables and figures of a study's complete parts")
    report.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the study")
    report.add_argument(
        "--json", type=Path, metavar="FOLDER", help="folder for NAME-PHASE.json, the comparisons of each phase"
    )
    add_policy_arguments(actions.add_parser("policy", help="write an untrained policy for the robot of a dataset"))


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="STUDY", help="study file (YAML)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the study")
    parser.add_argument("--phases", nargs="+", metavar="PHASE", help="phases to run (default: all, in their order)")
    parser.add_argument(
        "--workers", type=positive_integer, metavar="N", help="units in parallel (default: one per GPU, or per core)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="device of the policies (default: cuda if available)")
    parser.add_argument(
        "--quick", action="store_true", help="train every arm once with the smallest sizes, to test the study file"
    )


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder of a LeRobot dataset")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the policy")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: %(default)s)")
    for name, default, text in (
        ("--image-size", 84, "side of the policy's images in pixels"),
        ("--patch-size", 14, "side of the image patches in pixels"),
        ("--vision-depth", 1, "number of blocks of the image encoder"),
    ):
        parser.add_argument(
            name, type=positive_integer, default=default, metavar="N", help=f"{text} (default: {default})"
        )


def run(arguments: argparse.Namespace) -> int:
    return {"run": run_study, "report": report_study, "policy": write_policy}[arguments.action](arguments)


def run_study(arguments: argparse.Namespace) -> int:
    from rocket_hf.commands import main
    from rocket_hf.folder_lock import FolderLock
    from rocket_hf.sims.interruption import Interruption
    from rocket_hf.study.study_folder import start_study
    from rocket_hf.study.study_plan import StudyPlan
    from rocket_hf.study.study_report import write_study_report
    from rocket_hf.study.study_runner import StudyRunner
    from rocket_hf.study.study_units import UnitPlanner

    device, gpus = choose_device(arguments.device)
    with FolderLock(arguments.out), Interruption().listen():
        folder = start_study(arguments.file, arguments.out, arguments.quick)
        phases = select_phases(folder.study, arguments.phases)
        plan = StudyPlan(folder.study, UnitPlanner(folder.study, folder.path, device), folder.results)
        workers = arguments.workers or len(gpus) or available_cores()
        try:
            StudyRunner(folder, plan, phases, workers, gpus, main).run()
        except KeyboardInterrupt:
            print(f"\nrocket-hf study: interrupted. Repeat the command to resume {arguments.out}.", file=sys.stderr)
            return 130
        print(write_study_report(folder))
    return 0


def choose_device(name: str | None) -> tuple[str, list[int]]:
    """Return the device of the policies, and the indices of the GPUs to use."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cuda" and not count:
        raise UserError("--device cuda: PyTorch finds no GPU; use --device cpu")
    return ("cpu", []) if name == "cpu" or not count else ("cuda", list(range(count)))


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def select_phases(study: "Study", names: list[str] | None) -> list[str]:
    from rocket_hf.study.study_file import require_known

    for name in names or []:
        require_known("--phases", "phase", name, study.phases)
    return [name for name in study.phases if names is None or name in names]


def report_study(arguments: argparse.Namespace) -> int:
    from rocket_hf.study.study_folder import open_study
    from rocket_hf.study.study_report import write_comparisons, write_study_report

    folder = open_study(arguments.folder)
    print(write_study_report(folder))
    if arguments.json is not None:
        for path in write_comparisons(folder, arguments.json):
            print(f"written to {path}")
    return 0


def write_policy(arguments: argparse.Namespace) -> int:
    from rocket_hf.folder_lock import FolderLock
    from rocket_hf.study.small_policy import SmallPolicySizes, write_policy_repeatably

    if arguments.image_size % arguments.patch_size:
        raise UserError(
            f"--image-size {arguments.image_size} must be a multiple of --patch-size {arguments.patch_size}"
        )
    sizes = SmallPolicySizes(arguments.image_size, arguments.patch_size, arguments.vision_depth)
    with FolderLock(arguments.out):
        write_policy_repeatably(arguments.out, arguments.dataset, arguments.seed, sizes)
    print(f"written to {arguments.out}")
    return 0
