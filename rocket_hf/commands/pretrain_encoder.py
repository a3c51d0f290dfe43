"""Create a new ROCKET-2 policy with a pretrained, frozen image encoder, to start training from.

    rocket-hf simulate vizdoom --rooms 300 --out rooms
    rocket-hf pretrain-encoder rooms --out encoder
    accelerate launch training/train.py --recipe rocket2 --policy encoder --dataset rooms

The encoder learns to recognize the objects of recorded rooms. In the published ROCKET-2, an encoder that was pretrained
on millions of images takes its place; this command needs about a minute. It is deterministic on one machine.
"""

import argparse
from pathlib import Path

from .arguments import positive_integer

HELP = "create a ROCKET-2 policy with an image encoder that is pretrained on recorded rooms"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="dataset of recorded rooms: a folder or ID[@REVISION]")
    parser.add_argument("--out", required=True, metavar="FOLDER", type=Path, help="new folder for the policy")
    parser.add_argument(
        "--recipe", default="rocket2", help="recipe with the policy's configuration (default: %(default)s)"
    )
    parser.add_argument(
        "--steps",
        type=positive_integer,
        default=2500,
        help="number of optimizer steps with 32 images each (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from rocket_hf.export.policy_folder import write_rocket2_files
    from rocket_hf.folder_lock import staged_folder
    from rocket_hf.modeling.configuration_rocket2 import Rocket2Config
    from rocket_hf.training.recipe_files import read_rocket2_recipe
    from rocket_hf.training.rocket2.dataset import RecordedRooms
    from rocket_hf.training.rocket2.encoder_pretraining import pretrain_encoder
    from rocket_hf.training.rocket2.policy import check_policy_fits_data

    logging.disable_progress_bar()
    recipe = read_rocket2_recipe(arguments.recipe)
    config, data = Rocket2Config(**recipe.rocket2.config), RecordedRooms([arguments.dataset])
    check_policy_fits_data(config, data)
    with staged_folder(arguments.out) as staging:
        data.load_images()
        policy, report = pretrain_encoder(config, data, arguments.steps, arguments.seed)
        policy.save_pretrained(staging)
        write_rocket2_files(staging, policy.config)
    print(f"objects     {', '.join(report.names)}")
    print(f"rooms       {report.training_rooms} for training, {report.held_out_rooms} held out")
    print(f"patches     in held-out rooms, {report.object_accuracy:.1%} of those with an object are classified right,")
    print(f"            {report.false_detection_rate:.2%} of those without are classified as an object")
    print(f"policy      {arguments.out}, with a pretrained image encoder; its actions are not trained yet")
    return 0
