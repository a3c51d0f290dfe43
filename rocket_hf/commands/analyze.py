"""Analyze training runs.

    rocket-hf analyze gradients runs/rocket --samples 128
    rocket-hf analyze depth runs/none runs/rocket --dataset rgbd --teacher embedded --out depth
    rocket-hf analyze representations runs/rocket --checkpoints all

gradients: cosines between the gradients of the layer pairs' losses and the action loss with respect to shared weights.
depth: how well metric depth can be predicted from each layer of the policies, on simulated data with known depth.
representations: similarity of the policy's and the teacher's layers, and of projected features to their targets.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_retired_option, require_at_least_one

if TYPE_CHECKING:
    import torch

HELP = "analyze training runs (gradients, depth, layers)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ANALYSIS", required=True)
    for name, (description, add_analysis_arguments) in {
        "gradients": ("compute cosines between the gradients of a run's losses", add_gradients_arguments),
        "depth": ("measure how well metric depth can be predicted from each layer of policies", add_depth_arguments),
        "representations": ("compute similarities between layers", add_representation_arguments),
    }.items():
        add_analysis_arguments(actions.add_parser(name, help=description, description=f"{description.capitalize()}."))


def add_gradients_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run or of one of its checkpoints")
    parser.add_argument("--samples", type=int, default=128, help="number of training samples (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="samples per gradient (default: %(default)s)")
    parser.add_argument(
        "--parameters",
        metavar="PREFIX",
        help="prefix of the names of the weights to differentiate (default: the first aligned block)",
    )
    add_run_output_argument(parser)


def add_depth_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of runs, checkpoints or policies")
    parser.add_argument(
        "--dataset",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="dataset recorded with `rocket-hf simulate --depth`",
    )
    parser.add_argument("--teacher", help="teacher to compare with: a folder or a Hub id[@revision]")
    parser.add_argument(
        "--held-out-tasks",
        nargs="+",
        default=[],
        metavar="TASK",
        help="task texts whose episodes are used for testing only (default: a share of all tasks' episodes)",
    )
    parser.add_argument(
        "--held-out-share",
        type=float,
        default=0.25,
        help="share of episodes used for testing without --held-out-tasks (default: %(default)s)",
    )
    parser.add_argument("--samples", type=int, default=400, help="number of frames (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="frames per batch (default: %(default)s)")
    parser.add_argument(
        "--head",
        choices=("ridge", "mlp"),
        default="ridge",
        help="ridge: linear, one depth per patch (default); mlp: small network, 4 x 4 depths per patch",
    )
    parser.add_argument(
        "--position-features",
        action="store_true",
        help="add the patch position to the features, so that only depth beyond the usual one at a position counts",
    )
    add_retired_option(parser, "--given-place", "--position-features")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for tables and figures")


def add_representation_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run with alignment, or of a checkpoint")
    parser.add_argument(
        "--checkpoints",
        choices=("all", "last"),
        default="last",
        help="checkpoints to analyze; all: the initial policy and every kept checkpoint (default: %(default)s)",
    )
    parser.add_argument("--samples", type=int, default=128, help="number of training samples (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="samples per batch (default: %(default)s)")
    add_run_output_argument(parser)


def add_run_output_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder for tables and figures (default: RUN/analysis)"
    )


def run(arguments: argparse.Namespace) -> int:
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    analyses = {"gradients": run_gradients, "depth": run_depth, "representations": run_representations}
    return analyses[arguments.action](arguments, device)


def run_gradients(arguments: argparse.Namespace, device: "torch.device") -> int:
    from rocket_hf.analysis.gradient_analysis import analyze_gradients, format_agreement
    from rocket_hf.analysis.gradient_report import write_gradient_agreement
    from rocket_hf.analysis.restored_run import restore_run

    restored = restore_run(arguments.run, device)
    agreement, about = analyze_gradients(restored, arguments.parameters, arguments.samples, arguments.batch_size)
    out = arguments.out or arguments.run / "analysis"
    write_gradient_agreement(out, agreement, about)
    print("\n".join(format_agreement(agreement, about)))
    print(f"written    {out}/gradients.json, gradients.csv, gradients.png")
    return 0


def run_depth(arguments: argparse.Namespace, device: "torch.device") -> int:
    from rocket_hf.analysis.depth_analysis import DepthAnalysis, probe_runs, write_depth_results
    from rocket_hf.analysis.depth_probe import ProbeSettings
    from rocket_hf.analysis.depth_progress import DepthProgress, samples_digest
    from rocket_hf.analysis.depth_report import compare_results, summarize_results
    from rocket_hf.analysis.depth_samples import read_samples
    from rocket_hf.evaluation.identity import package_versions
    from rocket_hf.rgbd_dataset import RgbdFrames

    require_at_least_one(arguments, "batch_size")
    frames = RgbdFrames(arguments.dataset)
    samples = read_samples(frames, arguments.samples, arguments.held_out_tasks, arguments.held_out_share)
    settings = ProbeSettings(arguments.head, arguments.batch_size, arguments.position_features)
    dependencies = [asdict(settings), samples_digest(samples), package_versions()]
    progress = DepthProgress(arguments.out, dependencies)
    analysis = DepthAnalysis(samples, settings, device, progress)
    models = probe_runs(analysis, arguments.runs, arguments.teacher)
    results = write_depth_results(arguments.out, analysis, models, arguments.dataset.resolve().name)
    progress.remove()
    print("\n".join(f"compared   {difference.sentence()}" for difference in compare_results(results)))
    print(f"summary    {summarize_results(results)}")
    print(f"written    {arguments.out}/depth.json, depth.csv, depth.png, predicted-depth.png")
    return 0


def run_representations(arguments: argparse.Namespace, device: "torch.device") -> int:
    from rocket_hf.analysis.representation_analysis import analyze_representations, format_representations
    from rocket_hf.analysis.representations import write_representations

    analysis = analyze_representations(
        arguments.run, device, arguments.checkpoints, arguments.samples, arguments.batch_size
    )
    out = arguments.out or arguments.run / "analysis"
    files = write_representations(out, analysis.steps, analysis.pairs, analysis.teacher_layers, analysis.about)
    print("\n".join(format_representations(analysis)))
    print(f"written    {out}: {len(files)} tables and their heat maps")
    return 0
