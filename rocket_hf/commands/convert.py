"""Converts a public checkpoint to a folder of this package, tensor by tensor: all of it, or nothing and a reason."""

import argparse
from pathlib import Path

HELP = "convert a public checkpoint"
FAMILIES = {
    "lerobot-pi0": "a folder of lerobot's pi0",
    "lerobot-pi05": "a folder of lerobot's pi0.5",
}
DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    listed = "; ".join(f"{name}: {phrase}" for name, phrase in FAMILIES.items())
    parser.add_argument("family", choices=FAMILIES, metavar="FAMILY", help=listed)
    parser.add_argument("source", metavar="SOURCE", help="a folder, or a Hub id with an optional @revision")
    parser.add_argument("destination", metavar="DESTINATION", type=Path, help="a new folder")
    parser.add_argument("--tokenizer", help="folder or Hub id of the tokenizer, if not the one that the source names")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as in the source)")


def run(arguments: argparse.Namespace) -> int:
    import torch

    from rocket_hf.convert import lerobot_pi0
    from rocket_hf.convert.write import REPORT, source_folder, write_conversion

    folder, revision = source_folder(arguments.source)
    found = lerobot_pi0.read(folder, arguments.family.removeprefix("lerobot-"), arguments.tokenizer)
    source = folder.name if revision == "local" else arguments.source.partition("@")[0]
    origin = {"family": arguments.family, "source": source, "revision": revision}
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    report = write_conversion(found, arguments.destination, dtype, origin)
    print(f"converted  {report['parameters']:,} parameters in {report['tensors']} tensors to {arguments.destination}")
    for reason in dict.fromkeys(report["dropped"].values()):
        names = [name for name, why in report["dropped"].items() if why == reason]
        print(f"dropped    {len(names)} tensors: {reason}")
    print(f"report     {arguments.destination / REPORT}")
    return 0
