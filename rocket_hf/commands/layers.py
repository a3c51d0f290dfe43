"""Chooses which layers of a policy to align with which layers of a teacher, without training.

    rocket-hf layers --student-depth 32 --teacher-depth 24 --strategy uniform --pairs 8
    rocket-hf layers you/base you/robot-data --teacher facebook/VGGT-1B --strategy cka --pairs 8 --out layers
    accelerate launch -m rocket_hf.commands layers you/base ...      # on several devices; each takes its share

By depth alone: early-to-middle+last (ROCKET's), uniform, shallow, middle, deep, explicit. By what layers do on data:
similarity (where the policy's stream changes most or least), cka and mutual-knn (which layers are alike, one to one).
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rocket_hf.errors import UserError

from .arguments import numbers, require_at_least_one, resolution

if TYPE_CHECKING:
    from rocket_hf.layer_selection.choice import Pair

HELP = "choose which layers to align, without training"
EXPLICIT = "explicit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="POLICY", nargs="?", help="a folder, or a Hub id[@revision]")
    parser.add_argument("dataset", metavar="DATASET", nargs="?", help="a LeRobot dataset: a folder or a Hub id")
    parser.add_argument("--teacher", help="a folder, or a Hub id[@revision]")
    parser.add_argument("--student-depth", type=int, metavar="BLOCKS", help="in place of POLICY")
    parser.add_argument("--teacher-depth", type=int, metavar="BLOCKS", help="in place of --teacher")
    parser.add_argument("--strategy", default="early-to-middle+last", help="(default: %(default)s)")
    parser.add_argument("--pairs", type=int, help="how many")
    parser.add_argument("--student-layers", type=numbers, metavar="2,4,-1", help="of --strategy explicit")
    parser.add_argument("--teacher-layers", type=numbers, metavar="3,5,-1", help="of --strategy explicit")
    add_measure_arguments(parser.add_argument_group("strategies that look at data"))
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write recipe.yaml, similarity.csv, similarity.png")
    parser.add_argument("--json", action="store_true", help="print the layers alone, as JSON")


def add_measure_arguments(group: Any) -> None:
    group.add_argument("--samples", type=int, default=256, help="frames to look at (default: %(default)s)")
    group.add_argument("--batch-size", type=int, default=8, help="frames at a time (default: %(default)s)")
    group.add_argument(
        "--any-order", action="store_true", help="cka, mutual-knn: deeper layers may have shallower partners"
    )
    group.add_argument("--windows", type=numbers, default=[1], metavar="1,2,4",
                       help="similarity: blocks of a window; the first decides (default: 1)")  # fmt: skip
    group.add_argument("--change", default="largest", help="similarity: take the largest (default) or smallest changes")
    group.add_argument(
        "--resolution",
        type=resolution,
        default="camera",
        help='of the teacher: "camera" (default), "teacher" or a side in pixels',
    )
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help="(default: float32 on a CPU, else bfloat16)")
    group.add_argument("--workers", type=int, default=2, help="processes that read pictures (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    from rocket_hf.layer_selection.by_depth import BY_DEPTH, pairs_by_depth
    from rocket_hf.layer_selection.choice import check_count, check_strategy, explicit_pairs

    check_strategy(arguments.strategy)
    measured = arguments.strategy not in (*BY_DEPTH, EXPLICIT)
    if measured:
        check_measured(arguments)
    depths = student_depth(arguments), teacher_depth(arguments)
    if arguments.strategy == EXPLICIT:
        layers = required(arguments, "student_layers"), required(arguments, "teacher_layers")
        report(arguments, explicit_pairs(*layers, *depths))
        return 0
    count = required(arguments, "pairs")
    check_count(count, *depths)
    if measured:
        by_measure(arguments, depths, count)
    else:
        report(arguments, pairs_by_depth(arguments.strategy, *depths, count))
    return 0


def required(arguments: argparse.Namespace, name: str) -> Any:
    value = getattr(arguments, name)
    if value is None:
        raise UserError(f"--strategy {arguments.strategy} needs --{name.replace('_', '-')}")
    return value


def check_measured(arguments: argparse.Namespace) -> None:
    if arguments.policy is None or arguments.dataset is None:
        raise UserError(f"--strategy {arguments.strategy} looks at layers on data: name POLICY and DATASET")
    if arguments.student_depth is not None:
        raise UserError(f"--strategy {arguments.strategy} takes the depth from POLICY: leave --student-depth out")
    if arguments.strategy != "similarity":
        required(arguments, "teacher")
    require_at_least_one(arguments, "samples", "batch_size")


def student_depth(arguments: argparse.Namespace) -> int:
    given = arguments.student_depth
    if (given is None) == (arguments.policy is None):
        raise UserError("the depth of the student is that of POLICY, or --student-depth: give one of the two")
    if given is not None:
        return given
    from rocket_hf.layer_selection.layer_features import policy_depth

    return policy_depth(arguments.policy)


def teacher_depth(arguments: argparse.Namespace) -> int:
    given = arguments.teacher_depth
    if (given is None) == (arguments.teacher is None):
        raise UserError("the depth of the teacher is that of --teacher, or --teacher-depth: give one of the two")
    if given is not None:
        return given
    from rocket_hf.layer_selection.layer_features import teacher_depth as depth_of

    return depth_of(arguments.teacher)


def by_measure(arguments: argparse.Namespace, depths: tuple[int, int], count: int) -> None:
    import torch
    from accelerate import Accelerator
    from transformers.utils import logging

    from rocket_hf.layer_selection.by_measure import make_measure
    from rocket_hf.layer_selection.layer_features import MeasurementConfig, measure_layers

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    on_cpu = accelerator.device.type == "cpu"
    asked = MeasurementConfig(
        arguments.policy, arguments.dataset, arguments.teacher if arguments.strategy != "similarity" else None,
        arguments.resolution, arguments.dtype or ("float32" if on_cpu else "bfloat16"),
        arguments.samples, arguments.batch_size, arguments.workers,
    )  # fmt: skip
    measure = make_measure(
        arguments.strategy, depths, accelerator.device, not arguments.any_order, arguments.windows, arguments.change
    )
    samples = measure_layers(measure, asked, accelerator)
    if accelerator.is_main_process:
        pairs = measure.pairs(count)
        report(arguments, pairs, f", on {samples} frames of {arguments.dataset}")
        if arguments.out is not None:
            measure.write(arguments.out, pairs)


def report(arguments: argparse.Namespace, pairs: list["Pair"], measured_on: str = "") -> None:
    from rocket_hf.layer_selection.recipe_output import as_changes, layers_of, reasons, write_recipe

    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        about = f"ROCKET with {len(pairs)} layer pairs chosen by {arguments.strategy}{measured_on}."
        write_recipe(arguments.out / "recipe.yaml", pairs, about, arguments.teacher)
    if arguments.json:
        print(json.dumps(layers_of(pairs)))
        return
    print("\n".join(reasons(pairs)))
    print(f"\n{as_changes(pairs)}")
    if arguments.out is not None:
        print(f"--recipe {arguments.out / 'recipe.yaml'}")
