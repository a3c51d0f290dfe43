"""Looks into a run of training/train.py.

    rocket-hf analyze gradients runs/rocket --samples 128

gradients: whether its layer pairs, and its action loss, pull the shared weights in the same direction.
"""

import argparse
from pathlib import Path

HELP = "look into a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="WHAT", required=True)
    add_gradients_arguments(actions.add_parser("gradients", help="cosines between the gradients of its losses"))


def add_gradients_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, or of one of its checkpoints")
    parser.add_argument("--samples", type=int, default=128, help="of its data (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="samples of one gradient (default: %(default)s)")
    parser.add_argument(
        "--parameters", metavar="NAME", help="how the names of the weights begin (default: the first aligned block's)"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="(default: analysis/ in the run)")


def run(arguments: argparse.Namespace) -> int:
    return {"gradients": gradients}[arguments.action](arguments)


def gradients(arguments: argparse.Namespace) -> int:
    import torch
    from transformers.utils import logging

    from rocket_hf.analysis.gradients import write_agreement
    from rocket_hf.training.gradient_analysis import analyze_gradients, described
    from rocket_hf.training.reopened import reopen_aligned

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    reopened = reopen_aligned(arguments.run, device)
    agreement, about = analyze_gradients(reopened, arguments.parameters, arguments.samples, arguments.batch_size)
    out = arguments.out or arguments.run / "analysis"
    write_agreement(out, agreement, about)
    print("\n".join(described(agreement, about)))
    print(f"written    {out}/gradients.json, gradients.csv, gradients.png")
    return 0
