"""Publishes what a run has made: the merged policy, or a LoRA adapter, to the Hub or to a folder.

Everything is put together in a temporary folder and checked before anything is sent, in one commit. Run it again after
any failure: it goes on, and an unchanged policy makes no commit.
"""

import argparse
from pathlib import Path
from typing import Any

HELP = "publish a trained policy or its adapter"
DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN", type=Path, help="a run's folder, a checkpoint's, or a policy's")
    parser.add_argument("--repo", metavar="OWNER/NAME", help="the repository, made if it is not there")
    parser.add_argument("--to", metavar="FOLDER", type=Path, help="write to a new folder instead of the Hub")
    parser.add_argument("--private", action="store_true", help="the repository is private")
    parser.add_argument("--tag", help="of the commit, like v1; the card's snippets are pinned to it")
    parser.add_argument("--adapter", action="store_true", help="LoRA's weights alone, for PEFT, on --base")
    parser.add_argument("--base", metavar="OWNER/NAME[@REVISION]", help="what was trained (default: as the run says)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as they are)")
    parser.add_argument("--shard", default="5GB", metavar="SIZE", help="of a file of weights (default: %(default)s)")
    parser.add_argument("--license", metavar="ID", help="as the Hub writes it (default: the base's)")
    parser.add_argument(
        "--success", action="append", default=[], metavar="SUITE=48/50", help="for the card; repeatable"
    )
    parser.add_argument(
        "--evaluation", action="append", default=[], metavar="FILE", type=Path,
        help="a report of `rocket-hf eval` for the card; repeatable",
    )  # fmt: skip
    parser.add_argument("--rate", type=float, metavar="HZ", help="of control (default: the dataset's)")
    parser.add_argument("--conventions", default="", help="rotation, gripper, frames of reference, in a sentence")


def run(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from rocket_hf.training.trained_policy import find_origin

    if (arguments.repo is None) == (arguments.to is None):
        raise ValueError("say where to: either --repo OWNER/NAME or --to FOLDER")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    origin = find_origin(arguments.source)
    provenance = tell_provenance(arguments, origin)
    if provenance.training and provenance.training.teacher and provenance.training.teacher.note:
        print(f"note       {provenance.training.teacher.note}")
    work = publish_adapter if arguments.adapter else publish_policy
    return work(arguments, origin, provenance)


def publish_policy(arguments: argparse.Namespace, origin: Any, provenance: Any) -> int:
    import torch

    from rocket_hf.publish import publish, publish_to_folder
    from rocket_hf.training.trained_policy import load_trained

    model, processor = load_trained(origin)
    require_evaluated(model, processor, arguments.evaluation)
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    settings: dict[str, Any] = {"tag": arguments.tag, "dtype": dtype, "shard": arguments.shard}
    if arguments.to is not None:
        publish_to_folder(model, processor, arguments.to, provenance, **settings)
        return tell_folder(arguments.to)
    return tell(publish(model, processor, arguments.repo, provenance, private=arguments.private, **settings), True)


def publish_adapter(arguments: argparse.Namespace, origin: Any, provenance: Any) -> int:
    from rocket_hf.publishing.adapter import publish_adapter as push_adapter
    from rocket_hf.publishing.adapter import publish_adapter_to_folder
    from rocket_hf.training.sources import policy_folder
    from rocket_hf.training.trained_policy import load_adapted, load_trained

    recipe = origin.recipe
    if recipe is None or origin.checkpoint is None:
        raise ValueError("an adapter is made from a run or one of its checkpoints: give one of those")
    if recipe.lora.init in ("pissa", "olora"):
        raise ValueError(f"lora.init {recipe.lora.init} changes the base: publish the merged policy, without --adapter")
    if arguments.evaluation:
        require_evaluated(*load_trained(origin), arguments.evaluation)
    model, processor = load_adapted(origin)
    settings: dict[str, Any] = {"tag": arguments.tag, "trained_from": policy_folder(recipe.policy)}
    if arguments.to is not None:
        publish_adapter_to_folder(model, processor, arguments.to, provenance, **settings)
        return tell_folder(arguments.to)
    settings["private"] = arguments.private
    return tell(push_adapter(model, processor, arguments.repo, provenance, **settings), False)


def tell_provenance(arguments: argparse.Namespace, origin: Any) -> Any:
    """What the run says, and the user where they say otherwise."""
    from rocket_hf.hub_cards.facts import Provenance, Source
    from rocket_hf.training import provenance as told

    recipe = origin.recipe
    base = told.base_of(recipe) if recipe else None
    if arguments.base:
        name, _, revision = arguments.base.partition("@")
        base = Source(name, revision or None)
    if base is None:
        raise ValueError("nothing says which model on the Hub was trained: pass --base OWNER/NAME")
    licence = arguments.license or (told.base_licence(recipe) if recipe else None)
    if licence is None:
        raise ValueError(f"nothing says under which licence {base.id} is: pass --license")
    return Provenance(
        licence=licence,
        base_model=base,
        datasets=told.datasets_of(recipe) if recipe else [],
        training=told.training_of(recipe, origin.run, origin.checkpoint) if recipe else None,
        evaluations=[read_success(text) for text in arguments.success] + read_evaluations(arguments.evaluation),
        control_rate=arguments.rate or (told.control_rate(recipe) if recipe else None),
        conventions=arguments.conventions,
    )


def read_success(text: str) -> Any:
    import re

    from rocket_hf.hub_cards.facts import Evaluation

    match = re.fullmatch(r"(.+)=(\d+)/(\d+)", text)
    if match is None:
        raise ValueError(f"--success takes SUITE=SUCCESSES/EPISODES, like libero_spatial=48/50, got {text!r}")
    return Evaluation(match[1], int(match[2]), int(match[3]))


def read_evaluations(paths: list[Path]) -> list[Any]:
    from rocket_hf.evaluation.report import read_evaluation

    return [read_evaluation(path)[0] for path in paths]


def require_evaluated(model: Any, processor: Any, paths: list[Path]) -> None:
    """The reports are of this policy, not of another run's."""
    from rocket_hf.evaluation.identity import fingerprint
    from rocket_hf.evaluation.report import read_evaluation

    for path in paths:
        if read_evaluation(path)[1] != fingerprint(model, processor):
            raise ValueError(
                f"{path} is of another policy than the one that would be published: evaluate this one first"
            )


def tell_folder(folder: Path) -> int:
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"written    {folder}: {len(list(folder.iterdir()))} files, {size / 1e6:.2f} MB, checked")
    return 0


def tell(published: Any, whole: bool) -> int:
    from rocket_hf.publishing.verify import snippet

    what = "published " if published.changed else "unchanged "
    print(f"{what} {published.repo} at {published.commit}" + (f", tag {published.tag}" if published.tag else ""))
    print(f"\n{snippet(published.repo, published.commit)}" if whole else "           its card says how to load it")
    return 0
