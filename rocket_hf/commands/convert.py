"""Convert a public checkpoint to this package's format, or a policy of this package to lerobot's format.

    rocket-hf convert lerobot-pi0 lerobot/pi0_base converted/pi0
    rocket-hf convert openvla openvla/openvla-7b converted/openvla --statistics bridge_orig
    rocket-hf convert to-lerobot runs/rocket/policy converted/lerobot

Every tensor must match a weight of the policy; otherwise nothing is written and the first mismatch is printed.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rocket_hf.errors import UserError

if TYPE_CHECKING:
    from rocket_hf.convert.write import SourcePolicy
    from rocket_hf.modeling.strict_config import StrictConfig

HELP = "convert a public checkpoint"
FAMILIES = {
    "lerobot-pi0": "lerobot's pi0",
    "lerobot-pi05": "lerobot's pi0.5",
    "lerobot-smolvla": "lerobot's SmolVLA",
    "openvla": "openvla/openvla-7b and policies fine-tuned from it",
    "openvla-oft": "OpenVLA-OFT with its action head and state projector",
    "rocket-openvla": "OpenVLA-OFT trained with the public ROCKET code, with its alignment projector",
    "rocket2": "ROCKET-2",
    "to-lerobot": "reverse direction: a pi0, pi0.5 or SmolVLA policy of this package to lerobot's format",
}
DTYPES = ("float32", "bfloat16")
# Parts of a policy whose number of attention heads can be given with --heads.
PARTS = {
    "lerobot-pi0": ("vision",),
    "lerobot-pi05": ("vision",),
    "lerobot-smolvla": ("language", "vision"),
    "openvla": ("language", "dino", "siglip"),
    "openvla-oft": ("language", "dino", "siglip"),
    "rocket-openvla": ("language", "dino", "siglip"),
    "rocket2": ("rgb", "mask"),
}
# Options that only some families use.
OPTIONS = {
    "tokenizer": ("lerobot-", "openvla", "rocket-openvla", "to-lerobot"),
    "statistics": ("openvla", "rocket-openvla"),
    "base": ("openvla", "rocket-openvla"),
    "heads": tuple(PARTS),
    "vlm": ("lerobot-smolvla", "to-lerobot"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    families = (f"  {name:18}{description}" for name, description in FAMILIES.items())
    parser.epilog = "\n".join(["families:", *families])
    parser.add_argument("family", choices=FAMILIES, metavar="FAMILY", help="kind of checkpoint, see below")
    parser.add_argument("source", metavar="SOURCE", help="checkpoint: a folder or a Hub id[@revision]")
    parser.add_argument("destination", metavar="DESTINATION", type=Path, help="new folder for the converted policy")
    parser.add_argument(
        "--tokenizer",
        help="folder or Hub id of the tokenizer (default: the tokenizer named in the checkpoint; for to-lerobot: a "
        "copy in DESTINATION)",
    )
    parser.add_argument(
        "--statistics",
        metavar="KEY",
        help="dataset whose normalization statistics are used, if an OpenVLA checkpoint has several: a key of "
        "dataset_statistics.json or of norm_stats in config.json",
    )
    parser.add_argument(
        "--base",
        help="base model into which the checkpoint's lora_adapter/ is merged: a folder or Hub id (OpenVLA only)",
    )
    parser.add_argument(
        "--heads",
        metavar="PART=N",
        action="append",
        default=[],
        help="number of attention heads of a part of the policy, for example vision=16, if the command asks for it; "
        "the option may be repeated",
    )
    parser.add_argument(
        "--vlm",
        help="folder or Hub id of SmolVLA's vision-language model, whose configuration lerobot reads (default: the one "
        "named in the checkpoint; for to-lerobot: written to DESTINATION/vlm)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="data type of the weights (default: as in the checkpoint)")


def run(arguments: argparse.Namespace) -> int:
    from rocket_hf.convert.write import SOURCE_FILES
    from rocket_hf.hub import parse_source, resolve

    reject_unused_options(arguments)
    if arguments.family == "to-lerobot":
        return convert_to_lerobot(arguments)
    source = resolve(arguments.source, SOURCE_FILES, kind="source", ignore_code=names_own_code(arguments.family))
    name = source.folder.name if source.commit is None else parse_source(arguments.source).id
    origin = {"family": arguments.family, "source": name, "revision": source.commit or "local"}
    return convert_from_public(arguments, source.folder, origin)


def reject_unused_options(arguments: argparse.Namespace) -> None:
    for name, families in OPTIONS.items():
        if getattr(arguments, name) and not arguments.family.startswith(families):
            raise UserError(f"the family {arguments.family} does not use --{name}: remove it")


def convert_from_public(arguments: argparse.Namespace, folder: Path, origin: dict[str, Any]) -> int:
    import torch

    from rocket_hf.convert.write import REPORT, write_conversion

    source = read_source(arguments, folder)
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    report = write_conversion(source, arguments.destination, dtype, origin)
    print(f"converted  {report['parameters']:,} parameters in {report['tensors']} tensors to {arguments.destination}")
    reasons = list(report["dropped"].values())
    for reason in dict.fromkeys(reasons):
        print(f"dropped    {reasons.count(reason)} tensors: {reason}")
    print(f"report     {arguments.destination / REPORT}")
    return 0


def names_own_code(family: str) -> bool:
    """Return whether the public checkpoints of a family name their own code, which is not needed to read them."""
    return "openvla" in family


def read_source(arguments: argparse.Namespace, folder: Path) -> "SourcePolicy":
    from rocket_hf.convert.head_counts import HeadCounts, parse_heads
    from rocket_hf.convert.lerobot import read_lerobot
    from rocket_hf.convert.openvla import read_openvla
    from rocket_hf.convert.rocket2 import read_rocket2
    from rocket_hf.convert.write import SOURCE_FILES
    from rocket_hf.hub import resolve

    heads = HeadCounts(parse_heads(arguments.heads, PARTS[arguments.family]))
    if arguments.family == "rocket2":
        return read_rocket2(folder, heads)
    if names_own_code(arguments.family):
        base = None
        if arguments.base:
            base = resolve(arguments.base, SOURCE_FILES, kind="base model", ignore_code=True).folder
        return read_openvla(folder, arguments.family, arguments.tokenizer, arguments.statistics, base, heads)
    policy_type = arguments.family.removeprefix("lerobot-")
    return read_lerobot(folder, policy_type, arguments.tokenizer, heads, arguments.vlm)


def hub_hint(policy: "StrictConfig") -> str:
    """Return the Hub id of the vision-language model that the policy's source named, if it is known."""
    name = getattr(policy, "vlm_model_name", None)
    return f", here --vlm {name}" if name else ""


def convert_to_lerobot(arguments: argparse.Namespace) -> int:
    import torch

    from rocket_hf.convert.to_lerobot import lerobot_type, to_lerobot
    from rocket_hf.evaluation.trained_policy import file_errors_as_user_errors
    from rocket_hf.modeling.configuration_rocket import RocketConfig
    from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
    from rocket_hf.modeling.processing_rocket import RocketProcessor
    from rocket_hf.training.base_policy import find_policy_folder

    folder = find_policy_folder(arguments.source)
    policy_type = lerobot_type(RocketConfig.from_pretrained(folder))  # raises before any weight is read
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else "auto"
    with file_errors_as_user_errors(folder):
        model = RocketForActionPrediction.from_pretrained(folder, alignment=None, dtype=dtype)
        processor = RocketProcessor.from_pretrained(folder)
    names = to_lerobot(model, processor, arguments.destination, arguments.tokenizer, arguments.vlm)
    print(f"written    {arguments.destination}, a {policy_type} policy for lerobot")
    print(f"tokenizer  {names.tokenizer}")
    if names.vlm:
        print(f"vlm        {names.vlm}")
    if Path(names.vlm or names.tokenizer).is_relative_to(arguments.destination):
        print("           lerobot finds them by these paths: convert again after moving the folder, and pass")
        print(f"           Hub ids with --tokenizer or --vlm to publish it{hub_hint(model.config.policy_config)}")
    return 0
