"""Publishes what a run has made: the merged policy, a LoRA adapter or a ROCKET-2, to the Hub or to a folder.

Everything is put together in a temporary folder and checked before anything is sent, in one commit. Run it again after
any failure: it goes on, and an unchanged policy makes no commit.
"""

import argparse
from pathlib import Path
from typing import Any

from rocket_hf.errors import UserError

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
    parser.add_argument(
        "--keep", metavar="HEAD,...",
        help="heads of a ROCKET-2 that people see: visibility, point, box, or none (default: as it has them)",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as they are)")
    parser.add_argument("--shard", default="5GB", metavar="SIZE", help="of a file of weights (default: %(default)s)")
    parser.add_argument("--license", metavar="ID", help="as the Hub writes it (default: the base's)")
    parser.add_argument(
        "--success", action="append", default=[], metavar="SUITE=48/50", help="for the card; repeatable"
    )
    parser.add_argument(
        "--evaluation", action="append", default=[], metavar="FILE", type=Path,
        help="a report of `rocket-hf eval`, or its folder, for the card; repeatable",
    )  # fmt: skip
    parser.add_argument("--rate", type=float, metavar="HZ", help="of control (default: the dataset's)")
    parser.add_argument("--conventions", default="", help="what actions mean, frames of reference, in a sentence")


def run(arguments: argparse.Namespace) -> int:
    from transformers.utils import logging

    from rocket_hf.evaluation.trained_policy import find_origin
    from rocket_hf.export.policy_kinds import ROCKET2

    if (arguments.repo is None) == (arguments.to is None):
        raise UserError("say where to: either --repo OWNER/NAME or --to FOLDER")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    origin = find_origin(arguments.source)
    goals = kind_of_origin(origin) is ROCKET2
    require_fitting(arguments, goals)
    provenance = tell_goal_provenance(arguments, origin) if goals else tell_provenance(arguments, origin)
    if provenance.training and provenance.training.teacher and provenance.training.teacher.note:
        print(f"note       {provenance.training.teacher.note}")
    work = publish_goals if goals else publish_adapter if arguments.adapter else publish_policy
    return work(arguments, origin, provenance)


def kind_of_origin(origin: Any) -> Any:
    """A VLA or a ROCKET-2, by the policy's own configuration, or by the recipe of a run that has none yet."""
    from rocket_hf.export.policy_kinds import ROCKET2, VLA, kind_of

    if origin.policy is not None:
        return kind_of(origin.policy)
    return ROCKET2 if origin.recipe.goals is not None else VLA


def require_fitting(arguments: argparse.Namespace, goals: bool) -> None:
    if goals and arguments.adapter:
        raise UserError("ROCKET-2 is trained whole, so there is no adapter of it: leave --adapter out")
    if not goals and arguments.keep is not None:
        raise UserError("--keep is for the heads of ROCKET-2, and this is a VLA: leave it out")


def publish_policy(arguments: argparse.Namespace, origin: Any, provenance: Any) -> int:
    import torch

    from rocket_hf.evaluation.identity import fingerprint
    from rocket_hf.evaluation.trained_policy import load_trained
    from rocket_hf.export.policy_kinds import VLA
    from rocket_hf.publishing.package import publish, publish_to_folder

    model, processor = load_trained(origin)
    require_evaluated(fingerprint(model, processor), arguments.evaluation)
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    settings: dict[str, Any] = {"tag": arguments.tag, "dtype": dtype, "shard": arguments.shard}
    if arguments.to is not None:
        publish_to_folder(model, processor, arguments.to, provenance, **settings)
        return tell_folder(arguments.to)
    return tell(publish(model, processor, arguments.repo, provenance, private=arguments.private, **settings), VLA)


def publish_goals(arguments: argparse.Namespace, origin: Any, provenance: Any) -> int:
    import torch

    from rocket_hf.evaluation.identity import rocket2_fingerprint
    from rocket_hf.evaluation.trained_policy import load_trained_rocket2
    from rocket_hf.export.policy_kinds import ROCKET2
    from rocket_hf.publishing.rocket2 import publish_rocket2, publish_rocket2_to_folder

    model = load_trained_rocket2(origin)
    require_evaluated(rocket2_fingerprint(model), arguments.evaluation)
    keep = heads_to_keep(arguments.keep, origin, model)
    print(f"heads      {', '.join(keep) or 'none'} kept, which no action depends on")
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    settings: dict[str, Any] = {"keep": keep, "tag": arguments.tag, "dtype": dtype, "shard": arguments.shard}
    if arguments.to is not None:
        publish_rocket2_to_folder(model, arguments.to, provenance, **settings)
        return tell_folder(arguments.to)
    return tell(publish_rocket2(model, arguments.repo, provenance, private=arguments.private, **settings), ROCKET2)


def heads_to_keep(asked: str | None, origin: Any, model: Any) -> list[str]:
    """Those asked for, or those that training has kept. A converted checkpoint has them all, by nobody's choice."""
    from rocket_hf.convert.write import REPORT

    if asked is not None:
        return [] if asked == "none" else [head.strip() for head in asked.split(",")]
    converted = origin.policy is not None and (origin.policy / REPORT).is_file()
    return [] if converted else list(model.config.auxiliary_heads)


def publish_adapter(arguments: argparse.Namespace, origin: Any, provenance: Any) -> int:
    from rocket_hf.evaluation.identity import fingerprint
    from rocket_hf.evaluation.trained_policy import load_adapted, load_trained
    from rocket_hf.publishing.adapter import publish_adapter as push_adapter
    from rocket_hf.publishing.adapter import publish_adapter_to_folder
    from rocket_hf.training.vla.sources import policy_folder

    recipe = origin.recipe
    if recipe is None or origin.checkpoint is None:
        raise UserError("an adapter is made from a run or one of its checkpoints: give one of those")
    if recipe.lora.init in ("pissa", "olora"):
        raise UserError(f"lora.init {recipe.lora.init} changes the base: publish the merged policy, without --adapter")
    if arguments.evaluation:
        require_evaluated(fingerprint(*load_trained(origin)), arguments.evaluation)
    model, processor = load_adapted(origin)
    settings: dict[str, Any] = {"tag": arguments.tag, "trained_from": policy_folder(recipe.policy)}
    if arguments.to is not None:
        publish_adapter_to_folder(model, processor, arguments.to, provenance, **settings)
        return tell_folder(arguments.to)
    settings["private"] = arguments.private
    return tell(push_adapter(model, processor, arguments.repo, provenance, **settings), None)


def tell_provenance(arguments: argparse.Namespace, origin: Any) -> Any:
    """What the run says, and the user where they say otherwise."""
    from rocket_hf.publishing import provenance as told

    recipe = origin.recipe
    base = base_given(arguments) or (told.base_of(recipe) if recipe else None)
    if base is None:
        raise UserError("nothing says which model on the Hub was trained: pass --base OWNER/NAME")
    license = arguments.license or (told.base_license(recipe) if recipe else None)
    if license is None:
        raise UserError(f"nothing says under which license {base.id} is: pass --license")
    return provenance_of(arguments, origin, base, license)


def tell_goal_provenance(arguments: argparse.Namespace, origin: Any) -> Any:
    """The same of a ROCKET-2, which may have begun with nothing."""
    from rocket_hf.publishing import provenance as told
    from rocket_hf.publishing.rocket2_results import read_rocket2_evaluation

    recipe = origin.recipe
    base = base_given(arguments) or (told.base_of(recipe) if recipe else told.converted_from(origin.policy))
    license = arguments.license or (told.base_license(recipe) if recipe else None)
    if license is None:
        raise UserError("nothing says under which license this policy is: pass --license")
    provenance = provenance_of(arguments, origin, base, license)
    provenance.after_goals = [read_rocket2_evaluation(path) for path in arguments.evaluation]
    return provenance


def base_given(arguments: argparse.Namespace) -> Any:
    from rocket_hf.hub_cards.facts import Source

    if not arguments.base:
        return None
    name, _, revision = arguments.base.partition("@")
    return Source(name, revision or None)


def provenance_of(arguments: argparse.Namespace, origin: Any, base: Any, license: str) -> Any:
    from rocket_hf.hub_cards.facts import Provenance
    from rocket_hf.publishing import provenance as told

    recipe = origin.recipe
    return Provenance(
        license=license,
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
        raise UserError(f"--success takes SUITE=SUCCESSES/EPISODES, like libero_spatial=48/50, got {text!r}")
    return Evaluation(match[1], int(match[2]), int(match[3]))


def read_evaluations(paths: list[Path]) -> list[Any]:
    from rocket_hf.evaluation.report import read_evaluation

    return [read_evaluation(path)[0] for path in paths]


def require_evaluated(fingerprint: str, paths: list[Path]) -> None:
    """The reports are of this policy, not of another run's."""
    from rocket_hf.evaluation.report import read_evaluation

    for path in paths:
        if read_evaluation(path)[1] != fingerprint:
            raise UserError(
                f"{path} is of another policy than the one that would be published: evaluate this one first"
            )


def tell_folder(folder: Path) -> int:
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"written    {folder}: {len(list(folder.iterdir()))} files, {size / 1e6:.2f} MB, checked")
    return 0


def tell(published: Any, kind: Any) -> int:
    """Of an adapter, which is none of the kinds, the card says how to load it."""
    from rocket_hf.publishing.verify import snippet

    what = "published " if published.changed else "unchanged "
    print(f"{what} {published.repo} at {published.commit}" + (f", tag {published.tag}" if published.tag else ""))
    loading = (
        f"\n{snippet(published.repo, published.commit, kind)}" if kind else "           its card says how to load it"
    )
    print(loading)
    return 0
