"""Converts a public checkpoint to a folder of this package, tensor by tensor: all of it, or nothing and a reason."""

import argparse
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError

HELP = "convert a public checkpoint"
FAMILIES = {
    "lerobot-pi0": "a folder of lerobot's pi0",
    "lerobot-pi05": "a folder of lerobot's pi0.5",
    "lerobot-smolvla": "a folder of lerobot's SmolVLA",
    "openvla": "openvla/openvla-7b and its fine-tunings",
    "openvla-oft": "OpenVLA-OFT with its action head and state projector",
    "rocket-openvla": "the public ROCKET code's OpenVLA-OFT, with its alignment projector",
    "rocket2": "ROCKET-2, whose goals are masks in any view",
    "to-lerobot": "a pi0, pi0.5 or SmolVLA of ours, for lerobot's own class",
}
DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    listed = "; ".join(f"{name}: {phrase}" for name, phrase in FAMILIES.items())
    parser.add_argument("family", choices=FAMILIES, metavar="FAMILY", help=listed)
    parser.add_argument("source", metavar="SOURCE", help="a folder, or a Hub id with an optional @revision")
    parser.add_argument("destination", metavar="DESTINATION", type=Path, help="a new folder")
    parser.add_argument(
        "--tokenizer", help="folder or Hub id of the tokenizer (default: the one that the source names)"
    )
    parser.add_argument("--statistics", metavar="KEY", help="of which data set, where an OpenVLA folder has several")
    parser.add_argument("--base", help="the model into which the source's lora_adapter/ is to be merged (OpenVLA)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as in the source)")


def run(arguments: argparse.Namespace) -> int:
    from rocket_hf.convert.write import SOURCE_FILES
    from rocket_hf.hub import parse_source, resolve

    source = resolve(arguments.source, SOURCE_FILES, kind="source")
    if arguments.family == "to-lerobot":
        return back(arguments, source.folder)
    name = source.folder.name if source.commit is None else parse_source(arguments.source).id
    origin = {"family": arguments.family, "source": name, "revision": source.commit or "local"}
    return forth(arguments, source.folder, origin)


def forth(arguments: argparse.Namespace, folder: Path, origin: dict[str, Any]) -> int:
    import torch

    from rocket_hf.convert import lerobot, openvla, rocket2
    from rocket_hf.convert.write import REPORT, SOURCE_FILES, SourcePolicy, write_conversion
    from rocket_hf.hub import resolve

    if arguments.family == "rocket2":
        if unused := [name for name in ("tokenizer", "statistics", "base") if getattr(arguments, name)]:
            raise UserError(f"ROCKET-2 has no use for --{unused[0]}: leave it out")
        found: SourcePolicy = rocket2.read(folder)
    elif "openvla" in arguments.family:
        base = resolve(arguments.base, SOURCE_FILES, kind="base model").folder if arguments.base else None
        found = openvla.read(folder, arguments.family, arguments.tokenizer, arguments.statistics, base)
    else:
        found = lerobot.read(folder, arguments.family.removeprefix("lerobot-"), arguments.tokenizer)
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    report = write_conversion(found, arguments.destination, dtype, origin)
    print(f"converted  {report['parameters']:,} parameters in {report['tensors']} tensors to {arguments.destination}")
    for reason in dict.fromkeys(report["dropped"].values()):
        names = [name for name, why in report["dropped"].items() if why == reason]
        print(f"dropped    {len(names)} tensors: {reason}")
    print(f"report     {arguments.destination / REPORT}")
    return 0


def back(arguments: argparse.Namespace, folder: Path) -> int:
    import torch

    from rocket_hf.convert.to_lerobot import lerobot_type, to_lerobot
    from rocket_hf.modeling.configuration_rocket import RocketConfig
    from rocket_hf.modeling.modeling_rocket import RocketForActionPrediction
    from rocket_hf.modeling.processing_rocket import RocketProcessor

    kind = lerobot_type(RocketConfig.from_pretrained(folder))  # refused before any weight is read
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else "auto"
    model = RocketForActionPrediction.from_pretrained(folder, alignment=None, dtype=dtype)
    processor = RocketProcessor.from_pretrained(folder)
    to_lerobot(model, processor, arguments.destination, arguments.tokenizer)
    print(f"written    {arguments.destination}, for lerobot's {kind} policy")
    return 0
