"""Choose which layers of a policy to align with which layers of a teacher, without training.

    rocket-hf layers --student-depth 32 --teacher-depth 24 --strategy uniform --pairs 8
    rocket-hf layers you/base you/robot-data --teacher facebook/VGGT-1B --strategy cka --pairs 8 --out layers
    accelerate launch -m rocket_hf.commands layers you/base ...      # several devices share the samples

Strategies that depend only on the depth of the models: early-to-middle+last (that of ROCKET), uniform, shallow, middle,
deep, and explicit (a list). Strategies that measure layers on data: similarity (where the policy's residual stream
changes most or least), cka and mutual-knn (a one-to-one matching of the most similar layers).
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rocket_hf.errors import UserError
from rocket_hf.files import create_folder

from .arguments import image_resolution, integer_list, require_at_least_one

if TYPE_CHECKING:
    from rocket_hf.training.vla.layers_by_depth import LayerPair

HELP = "choose the layers to align, without training"
EXPLICIT = "explicit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="POLICY", nargs="?", help="policy: a folder or a Hub id[@revision]")
    parser.add_argument(
        "dataset", metavar="DATASET", nargs="?", help="LeRobot dataset: a folder or a Hub id[@revision]"
    )
    parser.add_argument("--teacher", help="teacher: a folder or a Hub id[@revision]")
    parser.add_argument(
        "--student-depth", type=int, metavar="BLOCKS", help="number of blocks of the policy, instead of POLICY"
    )
    parser.add_argument(
        "--teacher-depth", type=int, metavar="BLOCKS", help="number of blocks of the teacher, instead of --teacher"
    )
    parser.add_argument("--strategy", default="early-to-middle+last", help="selection strategy (default: %(default)s)")
    parser.add_argument("--pairs", type=int, help="number of layer pairs")
    parser.add_argument(
        "--student-layers", type=integer_list, metavar="2,4,-1", help="layers of the policy for --strategy explicit"
    )
    parser.add_argument(
        "--teacher-layers", type=integer_list, metavar="3,5,-1", help="layers of the teacher for --strategy explicit"
    )
    add_measure_arguments(parser.add_argument_group("strategies that measure layers on data"))
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder for recipe.yaml, similarity.csv and similarity.png"
    )
    parser.add_argument("--json", action="store_true", help="print only the layers, as JSON")


def add_measure_arguments(group: Any) -> None:
    group.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="feature cache with all layers of the teacher, which is read instead",
    )
    group.add_argument("--samples", type=int, default=256, help="number of frames (default: %(default)s)")
    group.add_argument("--batch-size", type=int, default=8, help="frames per batch (default: %(default)s)")
    group.add_argument(
        "--any-order",
        action="store_true",
        help="cka, mutual-knn: allow deeper student layers to be paired with shallower teacher layers",
    )
    group.add_argument(
        "--windows",
        type=integer_list,
        default=[1],
        metavar="1,2,4",
        help="similarity: window sizes in blocks; the first one selects the layers (default: 1)",
    )
    group.add_argument(
        "--change", default="largest", help="similarity: select the largest or smallest changes (default: %(default)s)"
    )
    group.add_argument(
        "--resolution",
        type=image_resolution,
        default="camera",
        help='image resolution of the teacher: "camera" (default), "teacher" or a side length in pixels',
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="data type of the models (default: float32 on a CPU, else bfloat16)",
    )
    group.add_argument("--workers", type=int, default=2, help="data loading processes (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    from rocket_hf.layer_selection.choice import check_strategy, explicit_pairs
    from rocket_hf.training.vla.layers_by_depth import BY_DEPTH, check_count, pairs_by_depth

    check_strategy(arguments.strategy)
    needs_data = arguments.strategy not in (*BY_DEPTH, EXPLICIT)
    if needs_data:
        check_measure_arguments(arguments)
    depths = student_depth(arguments), teacher_depth(arguments)
    if arguments.strategy == EXPLICIT:
        layers = require_argument(arguments, "student_layers"), require_argument(arguments, "teacher_layers")
        report(arguments, explicit_pairs(*layers, *depths))
        return 0
    count = require_argument(arguments, "pairs")
    check_count(count, *depths)
    if needs_data:
        select_by_measure(arguments, depths, count)
    else:
        report(arguments, pairs_by_depth(arguments.strategy, *depths, count))
    return 0


def require_argument(arguments: argparse.Namespace, name: str) -> Any:
    value = getattr(arguments, name)
    if value is None:
        raise UserError(f"--strategy {arguments.strategy} requires --{name.replace('_', '-')}")
    return value


def check_measure_arguments(arguments: argparse.Namespace) -> None:
    if arguments.policy is None or arguments.dataset is None:
        raise UserError(f"--strategy {arguments.strategy} measures layers on data: pass POLICY and DATASET")
    if arguments.student_depth is not None:
        raise UserError(f"--strategy {arguments.strategy} reads the depth from POLICY: remove --student-depth")
    if arguments.strategy != "similarity":
        require_argument(arguments, "teacher")
    require_at_least_one(arguments, "samples", "batch_size")
    if arguments.workers < 0:
        raise UserError(f"--workers must be at least 0, got {arguments.workers}")


def student_depth(arguments: argparse.Namespace) -> int:
    if (arguments.student_depth is None) == (arguments.policy is None):
        raise UserError("the depth of the policy is required: pass either POLICY or --student-depth")
    if arguments.student_depth is not None:
        return arguments.student_depth
    from rocket_hf.layer_selection.layer_features import policy_depth

    return policy_depth(arguments.policy)


def teacher_depth(arguments: argparse.Namespace) -> int:
    if (arguments.teacher_depth is None) == (arguments.teacher is None):
        raise UserError("the depth of the teacher is required: pass either --teacher or --teacher-depth")
    if arguments.teacher_depth is not None:
        return arguments.teacher_depth
    from rocket_hf.layer_selection.layer_features import teacher_depth as load_depth

    return load_depth(arguments.teacher, arguments.cache)


def select_by_measure(arguments: argparse.Namespace, depths: tuple[int, int], count: int) -> None:
    import torch
    from accelerate import Accelerator
    from transformers.utils import logging

    from rocket_hf.layer_selection.by_measure import build_measure
    from rocket_hf.layer_selection.layer_features import MeasurementConfig, measure_layers

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    on_cpu = accelerator.device.type == "cpu"
    config = MeasurementConfig(
        arguments.policy, arguments.dataset, arguments.teacher if arguments.strategy != "similarity" else None,
        arguments.resolution, arguments.dtype or ("float32" if on_cpu else "bfloat16"),
        arguments.samples, arguments.batch_size, arguments.workers, arguments.cache,
    )  # fmt: skip
    measure = build_measure(
        arguments.strategy, depths, accelerator.device, not arguments.any_order, arguments.windows, arguments.change
    )
    samples = measure_layers(measure, config, accelerator)
    if accelerator.is_main_process:
        pairs = measure.pairs(count)
        report(arguments, pairs, f", on {samples} frames of {arguments.dataset}")
        if arguments.out is not None:
            measure.write(arguments.out, pairs)


def report(arguments: argparse.Namespace, pairs: list["LayerPair"], source: str = "") -> None:
    from rocket_hf.layer_selection.recipe_output import (
        format_overrides,
        format_reasons,
        pair_layers,
        write_layer_recipe,
    )

    if arguments.out is not None:
        create_folder(arguments.out)
        about = f"ROCKET with {len(pairs)} layer pairs selected by {arguments.strategy}{source}."
        write_layer_recipe(arguments.out / "recipe.yaml", pairs, about, arguments.teacher)
    if arguments.json:
        print(json.dumps(pair_layers(pairs)))
        return
    print("\n".join(format_reasons(pairs)))
    print(f"\n{format_overrides(pairs)}")
    if arguments.out is not None:
        print(f"--recipe {arguments.out / 'recipe.yaml'}")
