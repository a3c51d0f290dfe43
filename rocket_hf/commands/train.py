"""Train a policy on LeRobot datasets, with or without alignment to a 3D vision model, on one or several devices.

    rocket-hf train --recipe rocket --policy you/base --dataset you/robot-data
    rocket-hf train --config_file fsdp2 --num_processes 4 --recipe rocket --policy you/base --dataset you/robot-data

This is the same as `accelerate launch -m rocket_hf.training.train`.
"""

import argparse

from rocket_hf.errors import UserError
from rocket_hf.training.arguments import add_training_arguments, training_words

HELP = "train a policy on LeRobot datasets, on one or several devices"
LAUNCHER_HELP = """\
All flags of `accelerate launch` are accepted. By default all GPUs of this machine are used, or the CPU.
  --num_processes N            number of processes, one per device
  --config_file NAME           accelerate configuration: one_gpu, ddp, fsdp2, fsdp2_whole_weights, zero2, zero3, cpu,
                               or the path of a YAML file
  --mixed_precision PRECISION  no, bf16 or fp16 (default: that of the configuration)
  --num_machines N, --machine_rank N, --main_process_ip ADDRESS, --main_process_port PORT
                               for several machines; run the command on each of them
`accelerate launch --help` lists all of them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)
    parser.add_argument_group("flags of the launcher", LAUNCHER_HELP)


def run(arguments: argparse.Namespace) -> int:
    from rocket_hf.training.launch import launch_training, split_launcher_flags

    flags, unknown = split_launcher_flags(arguments.unknown_words)
    if unknown:
        raise UserError(f"unrecognized arguments: {' '.join(unknown)}; see `rocket-hf train --help`")
    return launch_training(flags, training_words(arguments))
