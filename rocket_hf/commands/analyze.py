"""Looks into a run of training/train.py.

    rocket-hf analyze gradients runs/rocket --samples 128
    rocket-hf analyze depth runs/none runs/rocket --dataset rgbd --teacher embedded --out depth
    rocket-hf analyze representations runs/rocket --checkpoints all

gradients: whether its layer pairs, and its action loss, pull the shared weights in the same direction.
depth: how much each layer of its frozen policy tells of metric depth, which simulated data knows.
representations: which layers are alike, in the policy and between policy and teacher, and how well projections hit.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

HELP = "look into a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="WHAT", required=True)
    add_gradients_arguments(actions.add_parser("gradients", help="cosines between the gradients of its losses"))
    add_depth_arguments(actions.add_parser("depth", help="whether its policy has learned 3D"))
    add_representation_arguments(actions.add_parser("representations", help="which layers are alike"))


def add_gradients_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, or of one of its checkpoints")
    parser.add_argument("--samples", type=int, default=128, help="of its data (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="samples of one gradient (default: %(default)s)")
    parser.add_argument(
        "--parameters", metavar="NAME", help="how the names of the weights begin (default: the first aligned block's)"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="(default: analysis/ in the run)")


def add_depth_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of runs, checkpoints or policies")
    parser.add_argument("--dataset", required=True, type=Path, metavar="FOLDER", help="of `rocket-hf simulate --depth`")
    parser.add_argument("--teacher", help="whose layers to compare with: a folder, or a Hub id[@revision]")
    parser.add_argument("--held-out-tasks", nargs="+", default=[], metavar="TASK", help="sentences; to test on")
    parser.add_argument("--held-out-share", type=float, default=0.25,
                        help="of the episodes, where no task is named (default: %(default)s)")  # fmt: skip
    parser.add_argument("--samples", type=int, default=400, help="frames in all (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="frames at a time (default: %(default)s)")
    parser.add_argument("--head", choices=("ridge", "mlp"), default="ridge",
                        help="linear, one depth a patch (default), or a small network, 4 x 4 depths")  # fmt: skip
    parser.add_argument("--given-place", action="store_true",
                        help="tell the head where each patch is: then only what is not usual there counts")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for tables and pictures")


def add_representation_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of an aligned run, or of one of its checkpoints")
    parser.add_argument("--checkpoints", choices=("all", "last"), default="last",
                        help="all: the start too, and whatever the run has kept (default: %(default)s)")  # fmt: skip
    parser.add_argument("--samples", type=int, default=128, help="of its data (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="samples at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="(default: analysis/ in the run)")


def run(arguments: argparse.Namespace) -> int:
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    return {"gradients": gradients, "depth": depth, "representations": representations}[arguments.action](
        arguments, device
    )


def gradients(arguments: argparse.Namespace, device: "torch.device") -> int:
    from rocket_hf.analysis.gradient_analysis import analyze_gradients, described
    from rocket_hf.analysis.gradient_report import write_agreement
    from rocket_hf.analysis.restored_run import restore_run

    reopened = restore_run(arguments.run, device)
    agreement, about = analyze_gradients(reopened, arguments.parameters, arguments.samples, arguments.batch_size)
    out = arguments.out or arguments.run / "analysis"
    write_agreement(out, agreement, about)
    print("\n".join(described(agreement, about)))
    print(f"written    {out}/gradients.json, gradients.csv, gradients.png")
    return 0


def depth(arguments: argparse.Namespace, device: "torch.device") -> int:
    from rocket_hf.analysis.depth_analysis import Probing, probe_runs, write_depth
    from rocket_hf.analysis.depth_report import answer, differences
    from rocket_hf.analysis.depth_samples import read_samples
    from rocket_hf.sims.rgbd import RgbdFrames

    frames = RgbdFrames(arguments.dataset)
    samples = read_samples(frames, arguments.samples, arguments.held_out_tasks, arguments.held_out_share)
    probing = Probing(samples, device, arguments.head, arguments.batch_size, arguments.given_place)
    views = probe_runs(probing, arguments.runs, arguments.teacher)
    measured = write_depth(arguments.out, probing, views, arguments.dataset.resolve().name)
    print("\n".join(f"compared   {each.sentence()}" for each in differences(measured)))
    print(f"answer     {answer(measured)}")
    print(f"written    {arguments.out}/depth.json, depth.csv, depth.png, predicted-depth.png")
    return 0


def representations(arguments: argparse.Namespace, device: "torch.device") -> int:
    from rocket_hf.analysis.representation_analysis import analyze_representations, described
    from rocket_hf.analysis.representations import write_representations

    found, pairs, teacher_layers, about = analyze_representations(
        arguments.run, device, arguments.checkpoints, arguments.samples, arguments.batch_size
    )
    out = arguments.out or arguments.run / "analysis"
    files = write_representations(out, found, pairs, teacher_layers, about)
    print("\n".join(described(found, pairs)))
    print(f"written    {out}: {len(files)} tables and their pictures")
    return 0
