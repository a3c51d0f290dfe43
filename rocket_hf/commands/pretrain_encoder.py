"""Makes a new ROCKET-2 policy whose frozen picture encoder knows the objects of recorded rooms, to start training from.

    rocket-hf simulate vizdoom --rooms 300 --out rooms
    rocket-hf pretrain-encoder rooms --out eyes
    accelerate launch training/train.py --recipe rocket2 --policy eyes --dataset rooms

The published ROCKET-2 stands on an encoder that was pretrained on millions of pictures; a minute here stands for that.
The same command gives the same weights on the same machine.
"""

import argparse
from pathlib import Path

from rocket_hf.errors import UserError

from .arguments import positive

HELP = "make a new ROCKET-2 policy that knows what objects look like"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="recorded rooms: a folder or ID[@REVISION]")
    parser.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="a new folder, for the policy")
    parser.add_argument("--recipe", default="rocket2", help="has the policy's sizes (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=2500, help="of 32 pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from rocket_hf.export.export_files import staged, write_rocket2_surroundings
    from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
    from rocket_hf.training.recipe_files import read_recipe
    from rocket_hf.training.rocket2.dataset import RecordedRooms
    from rocket_hf.training.rocket2.encoder_pretraining import create_encoder_pretraining
    from rocket_hf.training.rocket2.policy import check_fits

    logging.disable_progress_bar()
    goals = read_recipe(arguments.recipe).goals
    if goals is None:
        raise UserError(f"--recipe {arguments.recipe} is not for ROCKET-2: take rocket2")
    config, data = Rocket2Config(**goals.config), RecordedRooms([arguments.dataset])
    check_fits(config, data)
    with staged(arguments.out) as staging:
        data.read()
        policy, report = create_encoder_pretraining(config, data, arguments.steps, arguments.seed)
        policy.save_pretrained(staging)
        write_rocket2_surroundings(staging, policy.config)
    print(f"objects     {', '.join(report.names)}")
    print(f"rooms       {report.rooms} to learn from, {report.held_out} held out")
    print(f"patches     {report.recognized:.1%} of those with an object called by its name, in rooms held out;")
    print(f"            something seen in {report.imagined:.2%} of the empty ones")
    print(f"policy      {arguments.out}, which knows what things look like and not what to do")
    return 0
